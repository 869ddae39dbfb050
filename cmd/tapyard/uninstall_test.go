package main

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tapyard/bench/nstest"
	"tapyard/switch/attach"
)

// installed is a node with the programs, as an operator has it.
type installed struct {
	*cli
	node, pod *nstest.NS
	config    string
	stateDir  string
	runDir    string
	unit      *nstest.Systemd // runs the agent by the unit; nil: the test does
}

func install(t *testing.T) *installed {
	t.Helper()
	n := &installed{node: nstest.New(t), pod: nstest.New(t)}
	if os.Getenv(unitEnv) == "" {
		n.cli = build(t)
	} else {
		n.underUnit(t)
	}
	n.config, n.stateDir, n.runDir = filepath.Join(n.dir, "tapyard.yaml"), filepath.Join(n.dir, "state"), filepath.Join(n.dir, "run")
	text := "name: n1\npodSubnets: [10.244.1.0/24, 'fd00:10:244:1::/64']\nunderlay: [192.168.1.11]\n" +
		"networks: [{name: blue, vni: 7, l2: local, uplink: eth1}]\npeersFile: " + filepath.Join(n.dir, "peers.yaml") + "\nrunDir: " + n.runDir + "\nstateDir: " + n.stateDir + "\n"
	if err := os.WriteFile(n.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.onNode("", "sh", "-ec", "ip address add 192.168.1.11/24 dev lo; ip link add eth1 type veth peer name far1; "+
		"for d in eth1 far1; do echo 1 >/proc/sys/net/ipv6/conf/$d/disable_ipv6; ip link set $d up; done") // or the kernel's own IPv6 routes come and go
	return n
}

func (n *installed) onNode(stdin, name string, args ...string) string {
	n.t.Helper()
	cmd := n.node.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// start runs an agent until it answers; the function that it returns ends it by a signal.
func (n *installed) start() (stop func(syscall.Signal)) {
	n.t.Helper()
	if n.unit != nil {
		return n.startUnit()
	}
	cmd := n.node.Command(filepath.Join(n.dir, "tapyard"), "agent", "--config", n.config)
	cmd.Stderr = n.t.Output()
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.answers()
	return func(s syscall.Signal) {
		n.t.Helper()
		if err := cmd.Process.Signal(s); err != nil {
			n.t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil && s != syscall.SIGKILL {
			n.t.Fatal(err)
		}
	}
}

func (n *installed) answers() {
	n.t.Helper()
	eventually(n.t, "the agent answers", func() bool {
		conn, err := net.Dial("unix", filepath.Join(n.runDir, "admin.sock"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (n *installed) cni(verb, id string) {
	n.t.Helper()
	n.cniOf(n.pod, verb, id)
}

func (n *installed) cniOf(pod *nstest.NS, verb, id string) {
	n.t.Helper()
	n.onNode(`{"cniVersion": "1.0.0", "name": "pods", "type": "tapyard-cni", "socket": "`+filepath.Join(n.runDir, "cni.sock")+`"}`,
		"env", "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_NETNS="+pod.Path(), "CNI_IFNAME=eth0", "CNI_PATH="+n.dir,
		"CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=web", filepath.Join(n.dir, "tapyard-cni"))
}

func (n *installed) uninstall(args ...string) (stdout string, err error) {
	n.t.Helper()
	cmd := n.node.Command(filepath.Join(n.dir, "tapyard"), append([]string{"uninstall", "--config", n.config}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out) + stderr.String(), err
	}
	return string(out), nil
}

// refused asserts an error with every part, and that the node is as it was.
func (n *installed) refused(parts ...string) {
	n.t.Helper()
	before := n.traces()
	out, err := n.uninstall()
	for _, part := range parts {
		if err == nil || !strings.Contains(out, part) {
			n.t.Errorf("uninstall: error %v, output lacks %q:\n%s", err, part, out)
		}
	}
	if after := n.traces(); after != before {
		n.t.Errorf("a refused uninstall changed\n%s\nto\n%s", before, after)
	}
}

// traces is what an agent may have changed on a node, as other programs see it. A carrier comes and goes
// with whoever opens the TAP, some time later, and with it what the kernel thinks of routes and fe80.
func (n *installed) traces() string {
	n.t.Helper()
	out := n.onNode("", "sh", "-c", "ip -br link | cut -d' ' -f1; (ip -o address; ip route; ip -6 route show table all) | grep -v fe80 | sed 's/ linkdown//'; nft list ruleset")
	inPod, err := n.pod.Command("sh", "-c", "ip -br link | cut -d' ' -f1").CombinedOutput()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, dir := range []string{n.stateDir, n.runDir} {
		names, _ := filepath.Glob(filepath.Join(dir, "*")) // the pattern is well-formed
		out += strings.Join(append([]string{dir + ":"}, names...), "\n") + "\n"
	}
	return out + "pod: " + string(inPod)
}

// assertTraces wants the node to be as it was when its traces were those.
func (n *installed) assertTraces(t *testing.T, then string) {
	t.Helper()
	if now := n.traces(); now != then {
		t.Errorf("left:\n%s\nwhere there was\n%s", now, then)
	}
}

func TestUninstall(t *testing.T) {
	n := install(t)
	clean := n.traces()
	if out, err := n.uninstall(); err != nil || out != "nothing to remove\n" {
		t.Fatalf("on a fresh node: %v %s", err, out)
	}

	stop := n.start()
	n.node.Do(t, func() {
		err := attach.SetEgress(attach.EgressConfig{PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}})
		if err != nil {
			t.Fatal(err)
		}
	})
	n.cni("ADD", "c1")
	n.refused("an agent answers on "+filepath.Join(n.runDir, "admin.sock"), "systemctl stop tapyard")
	stop(syscall.SIGKILL) // which leaves the sockets
	n.refused("1 still attached", "default/web", "10.244.1.3", n.pod.Path(), "--pods")

	out, err := n.uninstall("--pods")
	want := []string{"removed device of pod default/web [10.244.1.3 fd00:10:244:1::3], eth0 in " + n.pod.Path(),
		"removed records of attached pods " + filepath.Join(n.stateDir, "tapyard.db"),
		"removed nftables table inet tapyard",
		"removed nftables table netdev tapyard-eth1",
		"removed device tapyard0 with its addresses and routes",
		"removed " + filepath.Join(n.runDir, "admin.sock")}
	for _, line := range want {
		if !strings.Contains(out, line+"\n") {
			t.Errorf("uninstall lacks the line %q:\n%s", line, out)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if left := n.traces(); left != clean {
		t.Errorf("left on the node:\n%s\nwhich was\n%s", left, clean)
	}
	if out, err := n.uninstall("--pods"); err != nil || out != "nothing to remove\n" {
		t.Errorf("a second time: %v %s", err, out)
	}
}

// What an agent without an answering socket holds isn't taken from it, and a pod whose namespace is gone is
// no reason to refuse. Files of others stay.
func TestUninstallBesideOthers(t *testing.T) {
	n := install(t)
	stop := n.start()
	n.cni("ADD", "c1")
	elsewhere := filepath.Join(n.dir, "elsewhere")
	if out, err := n.uninstall("--run-dir", elsewhere); err == nil || !strings.Contains(out, "tapyard0") || !strings.Contains(out, "another process") {
		t.Errorf("with another run directory: %v %s", err, out)
	}
	stop(syscall.SIGTERM)
	n.cni("DEL", "c1") // leaves a tombstone
	if out, err := exec.Command("ip", "netns", "delete", n.pod.Name()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	note := filepath.Join(n.stateDir, "note")
	if err := os.WriteFile(note, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := n.uninstall()
	if err != nil || strings.Contains(out, "device of pod") || !strings.Contains(out, "removed "+filepath.Join(n.runDir, "tombstones")+"\n") {
		t.Errorf("uninstall: %v\n%s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(n.stateDir, "*")); len(left) != 1 || left[0] != note {
		t.Errorf("state directory holds %v, want %s", left, note)
	}
	if _, err := os.Stat(n.runDir); !os.IsNotExist(err) {
		t.Errorf("run directory: %v", err)
	}
}
