package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/seed"
)

// labTestDir is in the private /run of the tests: other runs of them at the same time have their own.
const labTestDir = "/run/lab-test"

// labBuild builds both programs once for all tests.
var labBuild = sync.OnceValues(func() (exe string, err error) {
	out, err := exec.Command("go", "build", "-o", labTestDir+"/", "tapyard/cmd/tapyard", "tapyard/cmd/tapyard-cni").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return filepath.Join(labTestDir, "tapyard"), nil
})

// labTool is the tapyard program in a test that leaves no lab behind.
type labTool struct {
	testing.TB
	exe string
}

func newLabTool(t testing.TB) *labTool {
	t.Helper()
	exe, err := labBuild()
	if err != nil {
		t.Fatalf("build the programs: %v", err)
	}
	tmp := filepath.Join(labTestDir, "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", tmp)
	t.Cleanup(func() {
		if err := labDown(nil); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return &labTool{t, exe}
}

// run returns what the program wrote to standard output, that and standard error, and its exit code.
func (l *labTool) run(args ...string) (out, all string, code int) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.exe, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); cmd.ProcessState == nil {
		l.Fatalf("run tapyard %v: %v", args, err)
	}
	return o.String(), o.String() + e.String(), cmd.ProcessState.ExitCode()
}

// must runs the program, which has to succeed, and returns its standard output.
func (l *labTool) must(args ...string) string {
	l.Helper()
	out, all, code := l.run(args...)
	if code != 0 {
		l.Fatalf("tapyard %v: exit code %d:\n%s%s", args, code, all, l.logs())
	}
	return out
}

// logs are the ends of the lab's logs.
func (l *labTool) logs() string {
	var b strings.Builder
	files, _ := filepath.Glob(labDir + "/*/agent.log")
	for _, f := range append(files, labSupervisorLog()) {
		fmt.Fprintf(&b, "--- %s\n%s\n", f, labTail(f))
	}
	return b.String()
}

func (l *labTool) status() labStatus {
	l.Helper()
	var s labStatus
	if err := json.Unmarshal([]byte(l.must("lab", "status", "-o", "json")), &s); err != nil {
		l.Fatalf("lab status -o json: %v", err)
	}
	return s
}

func (s labStatus) pids() []int {
	var pids []int
	for _, p := range s.Processes {
		pids = append(pids, p.PID)
	}
	return pids
}

func (s labStatus) pid(name string) int {
	for _, p := range s.Processes {
		if p.Name == name {
			return p.PID
		}
	}
	return 0
}

// killSupervisor ends what builds a lab, if there is one.
func (l *labTool) killSupervisor() {
	l.Helper()
	lab, err := LabOpen()
	if err != nil {
		return
	}
	pids, err := lab.pidsOf(labSupervisor)
	if err != nil {
		l.Fatal(err)
	}
	l.kill(pids...)
}

// kill kills processes and waits until the kernel has buried them.
func (l *labTool) kill(pids ...int) {
	l.Helper()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			l.Fatalf("open process %d: %v", pid, err)
		}
		p := &labProc{fd}
		if err := p.signal(unix.SIGKILL); err != nil {
			l.Fatal(err)
		}
		if !p.ended(patience) {
			l.Fatalf("process %d survives SIGKILL", pid)
		}
		p.close()
	}
}

// machine is what a lab must leave as it was: namespaces, devices, entries of folders, processes that know a lab.
func (l *labTool) machine() (state []string) {
	l.Helper()
	for _, dir := range []string{netnsDir, "/run", "/var/lib", "/etc", os.TempDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			l.Fatal(err)
		}
		for _, e := range entries {
			state = append(state, filepath.Join(dir, e.Name()))
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		l.Fatal(err)
	}
	for _, link := range links {
		state = append(state, "device "+link.Attrs().Name)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		env := labReadList(proc + "/environ") // empty if it has just ended
		mounts, _ := os.Readlink(proc + "/ns/mnt")
		ours := slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, labEnv+"=") })
		if home, _ := os.Readlink("/proc/self/ns/mnt"); ours && mounts == home { // not another run of this test
			state = append(state, fmt.Sprintf("process %q", labReadList(proc+"/cmdline")))
		}
	}
	return state
}

func (l *labTool) mustBeAs(before []string) {
	l.Helper()
	after := l.machine()
	for _, s := range after {
		if !slices.Contains(before, s) {
			l.Errorf("left behind: %s", s)
		}
	}
	for _, s := range before {
		if !slices.Contains(after, s) {
			l.Errorf("gone: %s", s)
		}
	}
}

// TestLab builds labs over both underlays, and holds each to what the commands promise.
func TestLab(t *testing.T) {
	for _, args := range [][]string{{}, {"--underlay6", "--workers", "2"}} {
		t.Run(strings.Join(args, ""), func(t *testing.T) {
			l := newLabTool(t)
			before := l.machine()
			l.must(append([]string{"lab", "up"}, args...)...)
			if out, all, code := l.run("lab", "up"); code == 0 || !strings.Contains(all, "tapyard lab down") || out != "" {
				t.Errorf("a second lab: exit code %d, %s", code, all)
			}
			l.checkStatus()
			l.checkDevices()
			l.checkExec()
			l.checkMatrix(len(args) > 0)
			l.must("lab", "down")
			l.mustBeAs(before)
			l.must("lab", "down") // of nothing
		})
	}
}

// checkStatus compares the status with what the kernel knows of the pods and processes.
func (l *labTool) checkStatus() {
	l.Helper()
	s := l.status()
	if len(s.Nodes) != 3 || len(s.Pods) != 6 || len(s.Processes) != 5 {
		l.Fatalf("the status has %d nodes, %d pods, %d processes; want 3, 6, 5 (supervisor, LAN, nodes)", len(s.Nodes), len(s.Pods), len(s.Processes))
	}
	for _, p := range s.Pods {
		out := l.must("lab", "exec", p.Name, "--", "ip", "-o", "addr", "show", "eth0")
		for _, a := range p.Addresses {
			if !strings.Contains(out, " "+a.String()+"/") {
				l.Errorf("%s should have %s, but 'ip addr' says:\n%s", p.Name, a, out)
			}
		}
		if out := l.must("lab", "exec", p.Name, "--", "ip", "link", "show", "eth0"); !strings.Contains(out, p.MAC) || p.MAC == "" {
			l.Errorf("%s should have the MAC %q, but 'ip link' says:\n%s", p.Name, p.MAC, out)
		}
	}
	for _, p := range s.Processes {
		if exe, err := os.Readlink("/proc/" + strconv.Itoa(p.PID) + "/exe"); exe != l.exe || err != nil {
			l.Errorf("%s should be process %d, which is %q (%v)", p.Name, p.PID, exe, err)
		}
	}
	for _, n := range s.Nodes {
		socket, err := LabAdminSocket(n.Name)
		if err == nil {
			err = agentGet(l.Context(), socket, "/v1/ready", nil)
		}
		if err != nil {
			l.Errorf("admin socket of %s: %v", n.Name, err)
		}
	}
}

// checkDevices allows lo, TUN/TAP and veth in the lab's namespaces, nothing that the kernel could forward by.
func (l *labTool) checkDevices() {
	l.Helper()
	lab, err := LabOpen()
	if err != nil {
		l.Fatal(err)
	}
	for _, name := range lab.netns() {
		err := inNetns(name, func() error {
			links, err := netlink.LinkList()
			for _, link := range links {
				if !slices.Contains([]string{"tuntap", "veth"}, link.Type()) && link.Attrs().Name != "lo" {
					l.Errorf("%s has the device %s of type %s", name, link.Attrs().Name, link.Type())
				}
			}
			return err
		})
		if err != nil {
			l.Fatal(err)
		}
	}
}

func (l *labTool) checkExec() {
	l.Helper()
	for _, c := range []struct {
		name, script string
		code         int
	}{{"n1p1", "exit 7", 7}, {"n2", "test -e /sys/class/net/tapyard0", 0}, {"n2p1", "test -e /sys/class/net/tapyard0", 1}} {
		if _, all, code := l.run("lab", "exec", c.name, "--", "sh", "-c", c.script); code != c.code {
			l.Errorf("lab exec %s -- sh -c %q: exit code %d, want %d: %s", c.name, c.script, code, c.code, all)
		}
	}
	if _, all, code := l.run("lab", "exec", "n9", "--", "true"); code == 0 || !strings.Contains(all, "n3p2") {
		l.Errorf("lab exec in a node that isn't there: exit code %d: %s", code, all)
	}
}

// checkMatrix has everything ask everything, and the tunnels' family be the one wanted.
func (l *labTool) checkMatrix(underlay6 bool) {
	l.Helper()
	lab, err := LabOpen()
	if err != nil {
		l.Fatal(err)
	}
	m, err := Matrix(l.Context(), lab)
	if err != nil {
		l.Fatal(err)
	}
	// 6 pods ask 5 pods, 3 nodes and the world, 3 nodes ask 6 pods: 72 pairs, 2 families, 3 protocols.
	if len(m.Probes) != 72*2*3 || len(m.Failures) > 0 {
		l.Errorf("%d probes, %d failures: %v\n%s", len(m.Probes), len(m.Failures), m.Failures, l.logs())
	}
	var vxlan []struct {
		Name      string
		Addresses []netip.Addr
	}
	out := l.must("show", "ports", "--node", "n1", "-o", "json")
	if err := json.Unmarshal([]byte(out), &vxlan); err != nil {
		l.Fatal(err)
	}
	for _, p := range vxlan {
		if p.Name == "vxlan" && p.Addresses[0].Is6() != underlay6 {
			l.Errorf("the tunnel ends at %v", p.Addresses)
		}
	}
}

// TestLabSurvivesItsAgents kills agents; the supervisor starts them again and pods reach each other.
func TestLabSurvivesItsAgents(t *testing.T) {
	l := newLabTool(t)
	l.must("lab", "up", "--nodes", "2", "--pods", "1")
	before := l.status()
	l.kill(before.pid("n1"), before.pid(labLAN))
	deadline := time.Now().Add(patience)
	for _, _, code := l.run("lab", "probe", "--from", "n1p1", "--to", "n2p1"); code != 0; {
		if time.Now().After(deadline) {
			t.Fatalf("n1p1 doesn't reach n2p1 again\n%s", l.logs())
		}
		_, _, code = l.run("lab", "probe", "--from", "n1p1", "--to", "n2p1")
	}
	after := l.status()
	if len(after.Processes) != 4 || after.pid("n1") == before.pid("n1") || after.pid("n2") != before.pid("n2") {
		t.Errorf("processes before %v, after %v", before.Processes, after.Processes)
	}
	l.must("lab", "down")
}

// TestLabTellsOfDeaths has an agent end itself, as on a panic: it is started again, and 'down' fails for it.
func TestLabTellsOfDeaths(t *testing.T) {
	l := newLabTool(t)
	before := l.machine()
	l.must("lab", "up", "--nodes", "1", "--pods", "1")
	if err := unix.Kill(l.status().pid("n1"), unix.SIGQUIT); err != nil { // Go's runtime exits with 2
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); !strings.Contains(labTail(labSupervisorLog()), "agent n1"); time.Sleep(labFollowPause) {
		if time.Now().After(deadline) {
			t.Fatal("the supervisor didn't notice")
		}
	}
	if _, all, code := l.run("lab", "down"); code == 0 || !strings.Contains(all, "agent n1: it ended by itself: exit status 2") {
		t.Errorf("lab down: exit code %d: %s", code, all)
	}
	l.mustBeAs(before)
}

// TestLabAfterKill kills every process of a lab, or all but the agents: 'up' and 'down' clear that away.
func TestLabAfterKill(t *testing.T) {
	l := newLabTool(t)
	before := l.machine()
	l.must("lab", "up", "--nodes", "2", "--pods", "1")
	l.kill(l.status().pids()...)
	l.must("lab", "up", "--nodes", "1", "--pods", "2")
	l.kill(l.status().pid(labSupervisor))
	if s := l.status(); len(s.Processes) != 2 {
		t.Errorf("agents left by a killed supervisor: %v, want the LAN's and n1's", s.Processes)
	}
	l.must("lab", "up", "--nodes", "1", "--pods", "1")
	l.must("lab", "probe", "--from", "n1p1", "--to", "n1")
	l.kill(l.status().pids()...)
	l.must("lab", "down")
	l.mustBeAs(before)
}

// TestLabHalfBuilt kills 'up' and its supervisor, or interrupts 'up', at random moments.
func TestLabHalfBuilt(t *testing.T) {
	rng := seed.Rand(t)
	l := newLabTool(t)
	before := l.machine()
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for range rounds {
		up := exec.Command(l.exe, "lab", "up")
		if err := up.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.Int64N(int64(400 * time.Millisecond)))) // building takes about as long
		if rng.IntN(3) == 0 {
			up.Process.Signal(unix.SIGINT) // an error means that it has ended
			up.Wait()
		} else {
			up.Process.Kill()
			up.Wait()
			l.killSupervisor()
		}
		if _, all, _ := l.run("lab", "down"); strings.Contains(all, "is at work on the lab") { // a supervisor that didn't have its name yet
			l.killSupervisor()
		}
		l.must("lab", "down") // again does no harm
		l.mustBeAs(before)
	}
}
