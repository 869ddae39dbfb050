package attach

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
)

// holdHostLocal has every run of host-local wait until free is called.
func holdHostLocal(t *testing.T, dir string) (free func()) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "pods"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "pods", "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

// runOfHostLocal waits for the one that a process has started, and returns its number.
func runOfHostLocal(t *testing.T, parent int) (pid int) {
	t.Helper()
	soon(func() bool {
		comms, _ := filepath.Glob("/proc/[0-9]*/comm")
		for _, comm := range comms {
			name, _ := os.ReadFile(comm)
			status, _ := os.ReadFile(filepath.Join(filepath.Dir(comm), "status"))
			if string(name) == "host-local\n" && bytes.Contains(status, fmt.Appendf(nil, "\nPPid:\t%d\n", parent)) {
				pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(comm)))
			}
		}
		return pid != 0
	})
	if pid == 0 {
		t.Fatal("host-local doesn't run")
	}
	return pid
}

// An IPAM plugin that is killed fails its ADD, which leaves nothing, and a DEL, which the next one completes.
func TestIPAMPluginKilled(t *testing.T) {
	n, ns := newNodeFor(t, kind{TAP, 1, true}, nil), nstest.New(t)
	under := func(f func() error) {
		t.Helper()
		free, ended := holdHostLocal(t, n.given), make(chan error, 1)
		go func() { ended <- f() }()
		if err := unix.Kill(runOfHostLocal(t, os.Getpid()), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		free()
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "IPAM plugin host-local, ") || !strings.Contains(err.Error(), "signal: killed") {
			t.Errorf("error %v, want that host-local was killed", err)
		}
	}
	req := n.request(t, ns, "c1")
	under(func() error { _, err := n.Add(t.Context(), req); return err })
	n.assertNothing(t, ns)
	n.addAsked(t, ns, "c1")
	under(func() error { return n.Del(t.Context(), req) })
	assertEmpty(t, ns)
	assertGiven(t, n.given, 3)
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
}

// A plugin that has ended is not waited for because what it has started still has its standard output.
func TestIPAMPluginLeavesAChild(t *testing.T) {
	dir := t.TempDir()
	plugin, child := filepath.Join(dir, "plugin"), filepath.Join(dir, "child")
	if err := os.WriteFile(plugin, fmt.Appendf(nil, "#!/bin/sh\nsleep 1000 &\necho $! > %s\n", child), 0o755); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := execPlugin(t.Context(), plugin, nil, os.Environ()); ended <- err }()
	var err error
	select {
	case err = <-ended:
	case <-time.After(time.Minute):
		err = errors.New("it is waited for")
	}
	if text, _ := os.ReadFile(child); len(text) > 0 {
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		unix.Kill(pid, unix.SIGKILL)
	}
	if !errors.Is(err, exec.ErrWaitDelay) {
		t.Error(err)
	}
}

// An agent that is killed while it waits for its IPAM plugin takes that along: it can't go on when the next agent has
// undone what this one had begun.
func TestAgentKilledUnderItsIPAMPlugin(t *testing.T) {
	k := kind{TAP, 1, true}
	v := &killedAgent{kind: k, dir: t.TempDir(), given: t.TempDir()}
	v.conf = k.conf(t, v.given, "")
	for _, verb := range []string{"ADD", "DEL"} {
		for _, ending := range endings {
			v.ns = nstest.New(t)
			agent := startAgent(t, v.dir, k.String())
			if verb == "DEL" {
				mustAnswer(t, v.dir, "ADD", v.ns, v.conf)
			}
			free, ended := holdHostLocal(t, v.given), make(chan error, 1)
			go func() { _, err := callWith(v.dir, verb, "c1", v.ns, v.conf); ended <- err }()
			pid := runOfHostLocal(t, agent.Process.Pid)
			if err := unix.Kill(pid, unix.SIGSTOP); err != nil { // so that it would come late
				t.Fatal(err)
			}
			agent.Process.Kill()
			if err := <-ended; !errors.Is(err, podapi.ErrAgentDown) {
				t.Errorf("%s: %v", verb, err)
			}
			agent.Wait()
			free()
			v.end(t, ending)
			if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil && !strings.Contains(string(status), "\nState:\tZ") {
				unix.Kill(pid, unix.SIGKILL)
				t.Errorf("the plugin outlives its agent: %s", status)
			}
			if t.Failed() {
				t.Fatalf("killed in the plugin's %s, followed by %s", verb, ending)
			}
		}
	}
}

// A pod is in the switch while it waits for a lease. When there is no daemon, or the agent is killed meanwhile, nothing of
// that stays.
func TestNoLease(t *testing.T) {
	k := kind{TAP, 1, true}
	socket := filepath.Join(t.TempDir(), "dhcp.sock")
	lease := fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "pods", "type": "tapyard", "network": "blue", "cni.dev/valid-attachments": [], "ipam": {"type": "dhcp", "daemonSocketPath": %q}}`, socket)
	n, ns := newNodeFor(t, k, nil), nstest.New(t)
	req := n.request(t, ns, "c1")
	var err error
	if req.Conf, err = parseConf(lease, "", nstest.CNIPlugins(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Add(t.Context(), req); err == nil || !strings.Contains(err.Error(), "IPAM plugin dhcp, ADD: ") || !strings.Contains(err.Error(), socket) {
		t.Errorf("without a daemon: %v", err)
	}
	assertEmpty(t, ns)
	if n.assertNotServed(t); len(n.entries) > 0 {
		t.Errorf("entries %v", n.entries)
	}

	daemon := exec.Command(filepath.Join(nstest.CNIPlugins(t), "dhcp"), "daemon", "-socketpath", socket, "-pidfile", socket+".pid")
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	soon(func() bool { return exists(socket) })
	v := &killedAgent{kind: k, dir: t.TempDir(), given: t.TempDir(), conf: lease}
	for _, ending := range endings {
		v.ns = nstest.New(t)
		agent, ended := startAgent(t, v.dir, k.String()), make(chan error, 1)
		go func() { _, err := callWith(v.dir, "ADD", "c1", v.ns, lease); ended <- err }()
		var traces string
		soon(func() bool {
			traces = string(mustAnswer(t, v.dir, "TRACES", nil, lease))
			return strings.Contains(traces, "port c1")
		})
		if !strings.Contains(traces, "port c1") {
			t.Fatalf("the pod isn't in the switch: %s", traces)
		}
		agent.Process.Kill()
		if err := <-ended; !errors.Is(err, podapi.ErrAgentDown) {
			t.Error(err)
		}
		agent.Wait()
		if v.end(t, ending); t.Failed() {
			t.Fatalf("followed by %s", ending)
		}
	}
}

// An IPAM plugin that can't take back the addresses of a pod that went keeps no agent from starting: the record stays
// until it can.
func TestStartWithoutAWorkingIPAMPlugin(t *testing.T) {
	n, ns := newNodeFor(t, kind{TAP, 1, true}, nil), nstest.New(t)
	n.addAsked(t, ns, "c1")
	vanish(t, ns)
	data, aside := filepath.Join(n.given, "pods"), filepath.Join(n.given, "aside")
	if err := errors.Join(os.Rename(data, aside), os.WriteFile(data, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	n.restart(t)
	if got := n.records(t); len(got) != 1 || len(n.List()) != 0 {
		t.Errorf("records %v, pods %v", got, n.List())
	}
	if err := errors.Join(os.Remove(data), os.Rename(aside, data)); err != nil {
		t.Fatal(err)
	}
	n.restart(t)
	n.assertNothing(t)
}

// CHECK is the plugin's as well, and looks for the rules that lead to the pod.
func TestCheckOfAll(t *testing.T) {
	for _, k := range kinds {
		if k.whole {
			t.Run(k.String(), func(t *testing.T) { testCheckOfAll(t, k) })
		}
	}
}

func testCheckOfAll(t *testing.T, k kind) {
	n, ns := newNodeFor(t, k, nil), nstest.New(t)
	n.addAsked(t, ns, "c1")
	e, _ := n.get("c1/eth0")
	out, err := result(e.a, Conf{CNIVersion: "1.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	prev, err := types100.NewResult(out)
	if err != nil {
		t.Fatal(err)
	}
	is := func(after, want string) {
		t.Helper()
		err := n.Check(t.Context(), n.request(t, ns, "c1"), prev.(*types100.Result))
		if want == "" && err != nil {
			t.Errorf("%s: %v", after, err)
		}
		if want != "" && (err == nil || podapi.AsError(err).Code != podapi.CodeBroken || err.Error() != "check c1/eth0, port c1: "+want) {
			t.Errorf("%s: %v\nwant %s", after, err, want)
		}
	}
	is("ADD", "")
	const says = "chain %s of nftables table inet tapyard has %d of %d rules that lead [*:8080->80/tcp *:53->53/udp] to the pod; the agent restores what others remove within half a minute"
	for _, c := range []struct {
		script     string
		chain      string
		have, want int
	}{
		{"delete table inet tapyard", "ports", 0, 6},
		{"flush chain inet tapyard ports", "ports", 0, 6},
		{"flush chain inet tapyard prerouting", "prerouting", 0, 1},
		{"flush chain inet tapyard output", "output", 0, 1},
		{"flush chain inet tapyard hairpin", "hairpin", 0, 10},
		// Of another pod, as its comment says.
		{"flush chain inet tapyard ports; add rule inet tapyard ports tcp dport 8080 drop comment \"c2; managed by tapyard\"", "ports", 0, 6},
	} {
		if out, err := exec.Command("nft", c.script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", c.script, err, out)
		}
		is(c.script, fmt.Sprintf(says, c.chain, c.have, c.want))
		if err := n.cfg.MapPorts(); err != nil {
			t.Fatal(err)
		}
		is("the rules are back", "")
	}
	address := filepath.Join(n.given, "pods", e.a.Addrs()[0].String())
	if err := os.Rename(address, address+".aside"); err != nil {
		t.Fatal(err)
	}
	is("host-local lost an address", "") // it looks for any of the pod's
	if err := os.Rename(filepath.Join(n.given, "pods"), filepath.Join(n.given, "lost")); err != nil {
		t.Fatal(err)
	}
	is("host-local lost all", "IPAM plugin host-local, CHECK: host-local: Failed to find address added by container c1")
	if err := errors.Join(os.RemoveAll(filepath.Join(n.given, "pods")), os.Rename(filepath.Join(n.given, "lost"), filepath.Join(n.given, "pods")), os.Rename(address+".aside", address)); err != nil {
		t.Fatal(err)
	}
	is("they are back", "")
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
}
