package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
)

func TestDelIsRepeatable(t *testing.T) { bothTypes(t, testDelIsRepeatable) }

func testDelIsRepeatable(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	n.add(t, ns, "c1")
	bare := Request{ContainerID: "c1", IfName: "eth0", NetnsFD: -1}
	n.del(t, bare)
	n.assertNothing(t, ns)
	n.del(t, bare)
	n.del(t, reqFor(ns, "c1"))
	n.del(t, reqFor(ns, "never-added"))
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	n.del(t, Request{ContainerID: "c1", IfName: "eth0", NetnsFD: int(null.Fd())})
	if err := n.Del(t.Context(), Request{ContainerID: "../x", IfName: "eth0", NetnsFD: -1}); podapi.AsError(err).Code != podapi.CodeEnvironment {
		t.Errorf("a bad container id: %v", err)
	}
	n.assertNothing(t, ns)
}

func TestDelAfterTheNamespace(t *testing.T) { bothTypes(t, testDelAfterTheNamespace) }

func testDelAfterTheNamespace(t *testing.T, portType string) {
	n := newNode(t, ofType(portType))
	t.Run("pod", func(t *testing.T) { n.add(t, nstest.New(t), "c1") })
	n.del(t, Request{ContainerID: "c1", IfName: "eth0", NetnsPath: "/run/netns/gone", NetnsFD: -1})
	n.assertNothing(t)
}

// Pods that vanish are swept, fresh ones and restored ones. One that is there stays, and so does one whose namespace we can't
// see at its path, as in a container without the host's /run.
func TestSweep(t *testing.T) { bothTypes(t, testSweep) }

func testSweep(t *testing.T, portType string) {
	n, stays, unseen := newNode(t, ofType(portType)), nstest.New(t), nstest.New(t)
	n.add(t, stays, "stays")
	t.Run("restored", func(t *testing.T) {
		n.add(t, nstest.New(t), "restored")
		n.restart(t)
	})
	req := reqFor(unseen, "unseen")
	req.NetnsPath = "/host/run/netns/unseen"
	if _, err := n.Add(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	t.Run("fresh", func(t *testing.T) { n.add(t, nstest.New(t), "fresh") })
	for range 100 {
		if n.sweep(t.Context()); len(n.List()) == 2 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if keys := n.listed(); !slices.Equal(keys, []string{"stays/eth0", "unseen/eth0"}) {
		t.Errorf("after the sweep: %v, want stays/eth0 and unseen/eth0", keys)
	}
	n.del(t, reqFor(stays, "stays"))
	n.del(t, req)
	n.assertNothing(t, stays, unseen)
}

// A DEL that fails isn't always repeated: what it has left of a pod is swept with the pod's namespace, and not before.
func TestSweepAfterAFailedDel(t *testing.T) { bothTypes(t, testSweepAfterAFailedDel) }

func testSweepAfterAFailedDel(t *testing.T, portType string) {
	_, steps := stepsOf(t, portType)
	n := newNode(t, ofType(portType))
	for _, step := range steps[:len(steps)-1] {
		t.Run(step, func(t *testing.T) {
			n.failAt("")
			n.add(t, nstest.New(t), "c1")
			n.failAt(step)
			if err := n.Del(t.Context(), Request{ContainerID: "c1", IfName: "eth0", NetnsFD: -1}); !errors.Is(err, errInjected) {
				t.Fatal(err)
			}
			n.failAt("")
			if n.sweep(t.Context()); len(n.snapshot()) != 1 {
				t.Error("a pod was swept whose namespace is there")
			}
		})
		for range 100 {
			if n.sweep(t.Context()); len(n.snapshot()) == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		n.assertNothing(t)
		if t.Failed() {
			t.Fatalf("at the step %q", step)
		}
	}
}

// A pod whose path is that of its first process, as ctr gives it, stays while any of its processes lives or its namespace has
// a name, and goes with the last of them.
func TestSweepOfProcesses(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted %t", restarted), func(t *testing.T) { testSweepOfProcesses(t, restarted) })
	}
}

func testSweepOfProcesses(t *testing.T, restarted bool) {
	n, ns := newNode(t, nil), nstest.New(t)
	processes := [2]*exec.Cmd{ns.Command("sleep", "1000"), ns.Command("sleep", "1000")}
	path := func(p *exec.Cmd) string { return fmt.Sprintf("/proc/%d/ns/net", p.Process.Pid) }
	for _, p := range processes {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		for inode(t, path(p)) != inode(t, ns.Path()) { // it is on its way in
			time.Sleep(time.Millisecond)
		}
	}
	req := reqFor(ns, "c1")
	req.NetnsPath = path(processes[0])
	if _, err := n.Add(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	restart := func() {
		if restarted {
			n.restart(t)
		}
	}
	for i, p := range processes {
		restart()
		if n.sweep(t.Context()); len(n.List()) != 1 {
			t.Fatalf("the pod was swept when %d of its processes had ended", i)
		}
		rows, err := n.Audit(t.Context(), true)
		if wrong, repaired := wrongAndRepaired(rows); err != nil || wrong+repaired != "" || len(n.List()) != 1 {
			t.Fatalf("audit when %d of its processes had ended: wrong %q, repaired %q, %v", i, wrong, repaired, err)
		}
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		p.Wait()
	}
	restart()
	if n.sweep(t.Context()); len(n.List()) != 1 {
		t.Fatal("the pod was swept while its namespace had a name")
	}
	if err := unix.Unmount(ns.Path(), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if n.sweep(t.Context()); len(n.List()) != 0 {
		t.Error("the pod was not swept when all its processes had ended")
	}
	n.assertNothing(t)
}

// What has a sweep come before its time: told once of what happens while nobody listens, and of nothing else.
func TestWatchMounts(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	changed, ended, dir := make(chan struct{}, 1), make(chan error), t.TempDir()
	go func() { ended <- watchMounts(ctx, changed) }()
	for told, tries := false, 0; !told; tries++ { // until it watches
		err := unix.Mount("tmpfs", dir, "tmpfs", 0, "")
		if err == nil {
			err = unix.Unmount(dir, 0)
		}
		if err != nil || tries == 1000 {
			t.Fatalf("after %d mounts: %v", tries, err)
		}
		select {
		case <-changed:
			told = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	time.Sleep(50 * time.Millisecond)
	for len(changed) > 0 {
		<-changed // it was told of the mount first
	}
	time.Sleep(50 * time.Millisecond)
	if len(changed) > 0 {
		t.Error("told of nothing")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st.Ino
}

// A DEL without a record removes what bears this attachment's alias, under any name, and nothing else.
func TestDelWithoutRecord(t *testing.T) {
	n, ns := newNode(t, nil), nstest.New(t)
	for _, c := range []struct{ name, alias string }{
		{"tytmp0000000001", "tapyard:c1/eth0"}, {"eth0", "tapyard:c2/eth0"}, {"eth1", "tapyard:c1/eth1"}, {"eth2", "mine"},
	} {
		if out, err := ns.Command("ip", "tuntap", "add", c.name, "mode", "tap").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out, err := ns.Command("ip", "link", "set", c.name, "alias", c.alias).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	n.del(t, reqFor(ns, "c1"))
	links := linksOf(t, ns)
	if len(links) != 4 || links["eth0"].Name == "" || links["eth1"].Name == "" || links["eth2"].Name == "" {
		t.Errorf("links %v, want eth0, eth1 and eth2 beside lo", links)
	}
}

// The runtime hangs up in the middle of a DEL: workers may still be on the device.
func TestDelIsNotInterrupted(t *testing.T) { bothTypes(t, testDelIsNotInterrupted) }

func testDelIsNotInterrupted(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	n.add(t, ns, "c1")
	ctx, cancel := context.WithCancel(t.Context())
	withdraw := n.cfg.Withdraw
	n.cfg.Withdraw = func(inner context.Context, a Attachment) error {
		cancel()
		return errors.Join(inner.Err(), withdraw(inner, a))
	}
	if err := n.Del(ctx, reqFor(ns, "c1")); err != nil {
		t.Error(err)
	}
	n.assertNothing(t, ns)
}

// While Withdraw runs, the port must be open: its number must not be given to another file.
func TestPortOutlivesWithdraw(t *testing.T) { bothTypes(t, testPortOutlivesWithdraw) }

func testPortOutlivesWithdraw(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	a := n.add(t, ns, "c1")
	fd := n.port(t, a).Rx()[0].FD()
	withdraw := n.cfg.Withdraw
	n.cfg.Withdraw = func(ctx context.Context, a Attachment) error {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			t.Errorf("the port is closed already: %v", err)
		}
		if linksOf(t, ns)["eth0"].Name == "" {
			t.Error("the device is gone already")
		}
		if len(n.records(t)) != 1 {
			t.Error("the record is gone already: a kill now would leave the device")
		}
		return withdraw(ctx, a)
	}
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
}

// Between the sweep's look at a pod that has gone and its DEL, the runtime makes the attachment anew.
func TestSweepSparesTheNextPod(t *testing.T) {
	n := newNode(t, nil)
	var gone entry
	t.Run("gone", func(t *testing.T) {
		n.add(t, nstest.New(t), "c1")
		gone = n.snapshot()[0]
	})
	n.del(t, Request{ContainerID: "c1", IfName: "eth0", NetnsFD: -1})
	ns := nstest.New(t)
	n.add(t, ns, "c1")
	if err := n.sweepOne(t.Context(), gone.a.Key()); err != nil || len(n.List()) != 1 {
		t.Errorf("after the sweep: %v, %v", n.listed(), err)
	}
}
