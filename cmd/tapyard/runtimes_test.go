package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapyard/bench/nstest"
	"tapyard/switch/attach"
	"tapyard/switch/observe"
)

// runtimeNode is a node as an operator has it: Tapyard installed and run by systemd, and a container runtime.
type runtimeNode struct {
	*nstest.Systemd
	t        *testing.T
	name     string
	underlay netip.Addr
	subnets  []netip.Prefix
	clean    string // traces of what isn't attached to anything
}

// podRuntime runs containers of nstest.Image on a node.
type podRuntime interface {
	// run starts one in a pod of its own; hostPort, unless it is 0, is mapped to its port 80.
	run(name string, hostPort int)
	// exec returns a command inside the container, with its standard input.
	exec(name string, args ...string) *exec.Cmd
	// remove ends the container and the pod.
	remove(name string)
}

// startRuntimeNodes returns two nodes that are each other's peer, both dual-stack.
func startRuntimeNodes(t *testing.T) (near, far *runtimeNode) {
	t.Helper()
	if os.Getenv(longEnv) == "" {
		t.Skip("'make test-long' runs it")
	}
	for _, program := range []string{"containerd", "podman", "runc", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: run 'make runtime-deps'", err)
		}
	}
	nss := []*nstest.NS{nstest.New(t), nstest.New(t)}
	shell(t, nss[0], "ip link add under type veth peer name under netns %s", nss[1].Name())
	c := build(t)
	var nodes []*runtimeNode
	peers := "clusterCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']\npeers:\n"
	for i, ns := range nss {
		n := &runtimeNode{t: t, name: fmt.Sprint("n", i+1), underlay: netip.AddrFrom4([4]byte{192, 168, 1, byte(11 + i)})}
		n.subnets = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", i+1))}
		shell(t, ns, "ip address add %s/24 dev under; ip link set under up", n.underlay)
		n.Systemd = nstest.NewSystemd(t, ns)
		peers += fmt.Sprintf("- {name: %s, underlay: %s, podSubnets: [%s, '%s']}\n", n.name, n.underlay, n.subnets[0], n.subnets[1])
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		if out, err := c.run("install", "--root", n.Path("/")); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		n.write("/etc/tapyard/tapyard.yaml", fmt.Sprintf("%sname: %s\npodSubnets: [%s, '%s']\nunderlay: [%s]\n", firstConfig, n.name, n.subnets[0], n.subnets[1], n.underlay))
		n.write("/etc/tapyard/peers.yaml", peers)
		n.write("/etc/systemd/system/tapyard.service.d/log.conf", "[Service]\nStandardOutput=append:"+unitLog+"\nStandardError=append:"+unitLog+"\n")
		n.write("/etc/resolv.conf", "")
		n.write("/etc/hosts", "127.0.0.1 localhost\n")
		n.write("/root/image.tar", string(nstest.BusyboxImage(t, nstest.Image, nstest.Server)))
		n.write("/usr/local/bin/who", nstest.Who)
		n.must("chmod", "755", "/usr/local/bin/who")
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the agent's log of %s:\n%s", n.name, n.log())
			}
		})
		n.must("systemctl", "daemon-reload")
		n.must("systemctl", "start", "tapyard")
	}
	return nodes[0], nodes[1]
}

func (n *runtimeNode) write(path, text string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(n.Path(path)), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(n.Path(path), []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// program installs one on the node.
func (n *runtimeNode) program(from, to string) {
	n.t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(to, string(b))
	if err := os.Chmod(n.Path(to), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

// service runs a program as a service that keeps its children when it is stopped, as runtimes' own units do.
func (n *runtimeNode) service(name, command string) {
	n.t.Helper()
	log := "/var/log/" + name + ".log"
	n.write("/etc/systemd/system/"+name+".service", "[Service]\nType=notify\nDelegate=yes\nKillMode=process\nTasksMax=infinity\nExecStart="+command+
		"\nStandardOutput=append:"+log+"\nStandardError=append:"+log+"\n")
	n.t.Cleanup(func() {
		if n.t.Failed() {
			text, _ := os.ReadFile(n.Path(log))
			n.t.Logf("%s on %s:\n%s", name, n.name, text)
		}
	})
	n.must("systemctl", "daemon-reload")
	n.must("systemctl", "start", name)
}

// must runs a command on the node and returns its output without the last newline.
func (n *runtimeNode) must(name string, args ...string) string {
	n.t.Helper()
	var stderr strings.Builder
	cmd := n.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("on %s, %s %s: %v: %s%s", n.name, name, strings.Join(args, " "), err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

func (n *runtimeNode) log() string {
	text, _ := os.ReadFile(n.Path(unitLog))
	return string(text)
}

// noWarnings asserts that the agent had nothing to complain about.
func (n *runtimeNode) noWarnings() {
	n.t.Helper()
	assertNoWarnings(n.t, n.log())
}

// traces is what a pod may have changed on the node, as other programs see it.
func (n *runtimeNode) traces() string {
	n.t.Helper()
	out := n.must("sh", "-c", "ip -br link | cut -d' ' -f1; (ip -o address; ip route; ip -6 route show table all) | grep -v fe80 | sed 's/ linkdown//'; nft list ruleset; ls /run/netns; "+
		"find /run/tapyard /var/lib/cni -type f || true")
	processes := strings.Fields(n.must("ps", "-eo", "comm="))
	slices.Sort(processes)
	out += "\nprocesses " + strings.Join(processes, " ")
	var ports []observe.Port
	n.decode(&ports, "tapyard", "show", "ports", "-o", "json")
	for _, p := range ports {
		out += "\nport " + p.Name
	}
	return out
}

func (n *runtimeNode) decode(into any, name string, args ...string) {
	n.t.Helper()
	if out := n.must(name, args...); json.Unmarshal([]byte(out), into) != nil {
		n.t.Fatalf("%s %s: %s", name, strings.Join(args, " "), out)
	}
}

// audited returns how many addresses pods have, or an error if something is wrong.
func (n *runtimeNode) audited() (int, error) {
	n.t.Helper()
	out, err := n.Command("tapyard", "ipam", "audit", "-o", "json").Output()
	var rows []attach.Audited
	err = errors.Join(err, json.Unmarshal(out, &rows))
	return len(rows), err
}

// nothingLeft asserts that the node is as it was before its first pod. A sweep may have to find what is gone.
func (n *runtimeNode) nothingLeft() {
	n.t.Helper()
	var rows int
	var err error
	var now string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		rows, err = n.audited()
		if now = n.traces(); err == nil && rows == 0 && now == n.clean {
			return
		}
	}
	n.t.Errorf("left on %s: %d addresses, %v, and of the lines of\n%s\nnot all, but\n%s", n.name, rows, err, without(n.clean, now), without(now, n.clean))
}

// without returns the lines of a text that another lacks.
func without(text, other string) (lines string) {
	for line := range strings.Lines(text) {
		if !slices.Contains(strings.Split(other, "\n"), strings.TrimSuffix(line, "\n")) {
			lines += line
		}
	}
	return lines
}

// runtimePod is a container that runs.
type runtimePod struct {
	t     *testing.T
	rt    podRuntime
	name  string
	addrs []netip.Addr
}

// startPod runs a container and asserts that it has an address of each of the node's subnets.
func startPod(t *testing.T, n *runtimeNode, rt podRuntime, name string, hostPort int) *runtimePod {
	t.Helper()
	rt.run(name, hostPort)
	p := &runtimePod{t: t, rt: rt, name: name}
	for _, word := range strings.Fields(p.must("ip", "-o", "address", "show", "dev", "eth0", "scope", "global")) {
		if prefix, err := netip.ParsePrefix(word); err == nil {
			p.addrs = append(p.addrs, prefix.Addr())
		}
	}
	if len(p.addrs) != 2 || !n.subnets[0].Contains(p.addrs[0]) || !n.subnets[1].Contains(p.addrs[1]) {
		t.Fatalf("%s has %s, want an address of each of %s", name, p.addrs, n.subnets)
	}
	return p
}

func (p *runtimePod) must(args ...string) string {
	p.t.Helper()
	var stderr strings.Builder // of the program, and of the runtime
	cmd := p.rt.exec(p.name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("in %s, %s: %v: %s%s", p.name, strings.Join(args, " "), err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// reaches asserts that pings and requests arrive, and that the other pod sees this one's own address.
func (p *runtimePod) reaches(to *runtimePod) {
	p.t.Helper()
	for i, addr := range to.addrs {
		p.must("ping", "-c1", "-W5", addr.String())
		got := p.must("who", addr.String(), "80")
		source, answered, _ := strings.Cut(got, " ")
		seen, _ := netip.ParseAddr(strings.Trim(source, "[]"))
		if seen.Unmap() != p.addrs[i] || !strings.HasPrefix(answered, to.addrs[0].String()+"/") {
			p.t.Errorf("%s asks %s at %s: seen from %q, want %s, and answered by %q", p.name, to.name, addr, source, p.addrs[i], answered)
		}
	}
}

// conversation is a TCP connection of a pod's program to the echo of another.
type conversation struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (p *runtimePod) talkTo(to *runtimePod) *conversation {
	p.t.Helper()
	c := &conversation{t: p.t, cmd: p.rt.exec(p.name, "nc", to.addrs[0].String(), "81")}
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	p.t.Cleanup(func() {
		c.cmd.Process.Kill() // the container's end is the connection's
		c.cmd.Wait()
	})
	return c
}

// say asserts that a line comes back.
func (c *conversation) say(line string) {
	c.t.Helper()
	patience := time.AfterFunc(30*time.Second, func() { c.cmd.Process.Kill() })
	defer patience.Stop()
	fmt.Fprintln(c.in, line) // an error shows as a missing answer
	if got, err := c.out.ReadString('\n'); err != nil || got != line+"\n" {
		c.t.Fatalf("the echo of %q is %q, %v", line, got, err)
	}
}

// testRuntime is what every runtime's pods expect: they reach each other as themselves, on a node and across nodes, through a
// restart of the agent, and leave nothing. hostPort, unless it is 0, is mapped to one of them.
func testRuntime(t *testing.T, near, far *runtimeNode, nearRuntime, farRuntime podRuntime, hostPort int) {
	t.Helper()
	near.clean, far.clean = near.traces(), far.traces()
	a, b := startPod(t, near, nearRuntime, "a", hostPort), startPod(t, near, nearRuntime, "b", 0)
	c := startPod(t, far, farRuntime, "c", 0)
	pairs := [][2]*runtimePod{{a, b}, {b, a}, {a, c}, {c, a}}
	all := func() {
		t.Helper()
		for _, pair := range pairs {
			pair[0].reaches(pair[1])
		}
		if hostPort != 0 {
			mapped(t, near, far, hostPort, a, b, c)
		}
	}
	all()
	for n, want := range map[*runtimeNode]int{near: 4, far: 2} {
		if got, err := n.audited(); err != nil || got != want {
			t.Errorf("the audit on %s: %v, %d addresses, want %d", n.name, err, got, want)
		}
	}

	local, remote := a.talkTo(b), c.talkTo(a)
	local.say("before")
	remote.say("before")
	near.must("systemctl", "restart", "tapyard")
	local.say("after")
	remote.say("after")
	all()

	nearRuntime.remove("a")
	near.must("systemctl", "stop", "tapyard")
	nearRuntime.remove("b") // succeeds, and the agent hears of it at its start
	near.must("systemctl", "start", "tapyard")
	farRuntime.remove("c")
	near.nothingLeft()
	far.nothingLeft()
	d := startPod(t, near, nearRuntime, "d", hostPort)
	e := startPod(t, far, farRuntime, "e", 0)
	e.reaches(d)
	nearRuntime.remove("d")
	farRuntime.remove("e")
	near.nothingLeft()
	far.nothingLeft()
}

// mapped asserts that the port of a pod's node leads to the pod: from both nodes, from itself and from other pods.
func mapped(t *testing.T, near, far *runtimeNode, hostPort int, pod *runtimePod, others ...*runtimePod) {
	t.Helper()
	node, port := near.underlay.String(), fmt.Sprint(hostPort)
	answers := map[string]string{}
	for _, n := range []*runtimeNode{near, far} {
		answers[n.name] = n.must("who", node, port)
	}
	for _, p := range append(others, pod) {
		answers[p.name] = p.must("who", node, port)
	}
	for from, got := range answers {
		if _, answered, _ := strings.Cut(got, " "); !strings.HasPrefix(answered, pod.addrs[0].String()+"/") {
			t.Errorf("from %s, port %s of %s answers %q, want %s", from, port, node, got, pod.addrs[0])
		}
	}
}
