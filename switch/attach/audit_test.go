package attach

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
)

// wrongAndRepaired are what is wrong, or what was repaired, in words.
func wrongAndRepaired(rows []Audited) (wrong, repaired string) {
	for _, r := range rows {
		wrong += strings.Join(r.Wrong, "\n")
		repaired += strings.Join(r.Repaired, "\n")
	}
	return wrong, repaired
}

// auditDamage is one way in which records, devices and namespaces may differ.
type auditDamage struct {
	do       func(t *testing.T, n *node, pod *nstest.NS, a Attachment)
	wrong    string // part of what the audit says
	repaired string // part of what the repair says; "" where it is beyond repair
	beyond   string // who repairs that
	running  bool   // only an agent that runs can tell
}

var auditDamages = map[string]auditDamage{
	"nothing": {},
	"the namespace is gone": {
		do: func(t *testing.T, _ *node, pod *nstest.NS, _ Attachment) {
			if out, err := exec.Command("ip", "netns", "delete", pod.Name()).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		},
		wrong: "gone", repaired: "detached",
	},
	"a device without a record": {
		do: func(t *testing.T, n *node, pod *nstest.NS, a Attachment) {
			a.ContainerID, a.Addresses = "killed", []netip.Prefix{netip.MustParsePrefix("10.244.1.77/24")}
			run(t, pod, "ip tuntap add tytmp1 mode tap && ip link set tytmp1 alias '"+n.agent.alias(a)+"'")
		},
		wrong: "device tytmp1 in /run/netns/", repaired: "removed",
	},
	"another agent's device": {
		do: func(t *testing.T, _ *node, pod *nstest.NS, a Attachment) {
			a.ContainerID = "neighbour"
			run(t, pod, "ip tuntap add eth5 mode tap && ip link set eth5 alias '"+someAgent.alias(a)+"'")
		},
	},
	"a device that lacks its addresses": {
		do:    func(t *testing.T, _ *node, pod *nstest.NS, _ Attachment) { run(t, pod, "ip address flush dev eth0") },
		wrong: "eth0 lacks the address 10.244.1.3/24", repaired: "configured anew",
	},
	"a device whose copy is another": {
		do: func(t *testing.T, _ *node, pod *nstest.NS, _ Attachment) {
			run(t, pod, "ip link set eth0 alias tapyard:c1/eth0")
		},
		wrong: "holds another copy", repaired: "written anew",
	},
	"a device that is gone": {
		do:     func(t *testing.T, _ *node, pod *nstest.NS, _ Attachment) { run(t, pod, "ip link del eth0") },
		wrong:  "delete the pod and create it anew",
		beyond: "DEL",
	},
	"a device with another MAC": {
		do: func(t *testing.T, _ *node, pod *nstest.NS, _ Attachment) {
			run(t, pod, "ip link set eth0 address 02:00:00:00:00:99")
		},
		wrong: "has MAC 02:00:00:00:00:99", beyond: "DEL",
	},
	"an address that two have": {
		do: func(t *testing.T, n *node, _ *nstest.NS, a Attachment) {
			b := a
			b.ContainerID, b.Created = "twin", a.Created.Add(1)
			if err := n.store.put(b); err != nil {
				t.Fatal(err)
			}
			n.entries[b.Key()] = &entry{a: b, fail: fmt.Errorf("claim: it is c1's")}
		},
		wrong: "c1 has the same address", beyond: "DEL",
	},
	"an address that leaked": {
		do: func(t *testing.T, n *node, _ *nstest.NS, _ Attachment) {
			if err := n.networks[0].pools[0].Claim(netip.MustParseAddr("10.244.1.99"), "leak/eth0"); err != nil {
				t.Fatal(err)
			}
		},
		wrong: "10.244.1.99 is set aside", repaired: "released", running: true,
	},
}

// An audit says what is wrong and changes nothing, one with repair mends what it can, and the next one agrees.
func TestAudit(t *testing.T) { bothTypes(t, testAudit) }

func testAudit(t *testing.T, portType string) {
	for name, c := range auditDamages {
		for _, stopped := range []bool{false, true} {
			if stopped && c.running {
				continue
			}
			t.Run(fmt.Sprintf("%s, stopped %t", name, stopped), func(t *testing.T) {
				n, pod := newNode(t, ofType(portType)), nstest.New(t)
				a := n.add(t, pod, "c1")
				if c.do != nil {
					c.do(t, n, pod, a)
				}
				audit := func(repair bool) []Audited {
					rows, err := n.Audit(t.Context(), repair)
					if stopped {
						rows, err = AuditStopped(t.Context(), n.start.StateDir, repair)
					}
					if err != nil {
						t.Fatal(err)
					}
					return rows
				}
				if stopped {
					if err := n.Close(); err != nil {
						t.Fatal(err)
					}
					defer n.reopen(t) // for newNode's cleanup
				}
				for range 2 { // the first changes nothing
					if wrong, repaired := wrongAndRepaired(audit(false)); !strings.Contains(wrong, c.wrong) || (wrong == "") != (c.wrong == "") || repaired != "" {
						t.Errorf("wrong %q, repaired %q; want %q wrong", wrong, repaired, c.wrong)
					}
				}
				wrong, repaired := wrongAndRepaired(audit(true))
				if !strings.Contains(repaired, c.repaired) || (repaired == "") != (c.repaired == "") || c.beyond != "" && !strings.Contains(wrong, c.wrong) {
					t.Errorf("with repair: wrong %q, repaired %q; want %q", wrong, repaired, c.repaired)
				}
				if wrong, _ := wrongAndRepaired(audit(false)); (wrong == "") != (c.beyond == "") {
					t.Errorf("after the repair: %q", wrong)
				}
			})
		}
	}
}

// One row for each address, with all that an operator wants to know.
func TestAuditRows(t *testing.T) {
	n, pod := newNode(t, nil), nstest.New(t)
	a := n.add(t, pod, "c1")
	rows, err := n.Audit(t.Context(), false)
	if err != nil || len(rows) != 2 {
		t.Fatalf("%+v, %v", rows, err)
	}
	for i, r := range rows {
		if r.Address != a.Addresses[i] || r.Owner != "c1" || r.Attachment != "c1/eth0" || r.VNI != 1 || !r.Record || r.Device != "eth0" || r.Netns != pod.Path() || r.Published == nil || !*r.Published {
			t.Errorf("row %d: %+v", i, r)
		}
	}
}

// A start repairs what a kill and the time without an agent left, and the log tells of it.
func TestReconcile(t *testing.T) { bothTypes(t, testReconcile) }

func testReconcile(t *testing.T, portType string) {
	n, stays, killed := newNode(t, ofType(portType)), nstest.New(t), nstest.New(t)
	n.add(t, stays, "stays")
	a := n.add(t, killed, "killed")
	if err := n.store.delete(a.Key()); err != nil { // as if the kill had come before the record
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	n.start.Log = textLog(&log)
	n.reopen(t)
	if err := n.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if links := linksOf(t, killed); len(links) != 1 || !strings.Contains(log.String(), "killed/eth0") || !strings.Contains(log.String(), killed.Path()) || !strings.Contains(log.String(), "removed") {
		t.Errorf("devices %v; log %s", links, &log)
	}
	if !slices.Equal(n.listed(), []string{"stays/eth0"}) || linksOf(t, stays)["eth0"].Name == "" {
		t.Errorf("published %v", n.listed())
	}
	n.del(t, reqFor(stays, "stays"))
	n.assertNothing(t, stays, killed)
}

// What ADD and DEL are in the middle of is not taken for something wrong.
func TestAuditBesideAddsAndDels(t *testing.T) { bothTypes(t, testAuditBesideAddsAndDels) }

func testAuditBesideAddsAndDels(t *testing.T, portType string) {
	n := newNode(t, ofType(portType))
	done := make(chan error)
	pods := []*nstest.NS{nstest.New(t), nstest.New(t), nstest.New(t)}
	for i, ns := range pods {
		go func() {
			var err error
			for range 15 {
				if _, err = n.Add(t.Context(), reqFor(ns, fmt.Sprint("c", i))); err == nil {
					err = n.Del(t.Context(), reqFor(ns, fmt.Sprint("c", i)))
				}
				if err != nil {
					break
				}
			}
			done <- err
		}()
	}
	for left := len(pods); left > 0; {
		rows, err := n.Audit(t.Context(), true)
		if wrong, repaired := wrongAndRepaired(rows); err != nil || wrong+repaired != "" {
			t.Errorf("wrong %q, repaired %q, %v", wrong, repaired, err)
		}
		select {
		case err := <-done:
			left--
			if err != nil {
				t.Error(err)
			}
		default:
		}
	}
	n.assertNothing(t, pods...)
}

// Blanks and the like in a mount's path are escaped by the kernel.
func TestNetnsPaths(t *testing.T) {
	ns := nstest.New(t)
	odd := t.TempDir() + "/a b\\c"
	if err := os.WriteFile(odd, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--bind", ns.Path(), odd).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer exec.Command("umount", odd).Run()
	id, err := netnsOf(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	if paths, err := netnsPaths(); err != nil || paths[id.Ino] != odd {
		t.Errorf("path %q, %v; want %q", paths[id.Ino], err, odd)
	}
}

// What is mounted where another process sees it, and we don't, is found through that process.
func TestNetnsOfAnothersMounts(t *testing.T) {
	ns, place := nstest.New(t), filepath.Join(t.TempDir(), "pod")
	other := exec.Command("unshare", "-m", "sh", "-c", `: > "$1"; mount --bind "$2" "$1" && echo ready && exec sleep 1000`, "sh", place, ns.Path())
	out, err := other.StdoutPipe()
	if err == nil {
		err = other.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Process.Kill(); other.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ino, paths := inode(t, ns.Path()), map[uint64]string{}
	if inode(t, place) == ino {
		t.Fatal("the mount is ours as well")
	}
	if err := unix.Unmount(ns.Path(), unix.MNT_DETACH); err != nil { // which leaves the other's copy and ns's descriptor
		t.Fatal(err)
	}
	if err := mountedNetns(strconv.Itoa(other.Process.Pid), paths); err != nil || paths[ino] == "" || inode(t, paths[ino]) != ino {
		t.Errorf("path %q, %v; want one that leads to namespace %d", paths[ino], err, ino)
	}
}
