package nstest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st.Ino
}

// Every thread of the process, not only this one, must have left the namespaces that go test ran in.
func TestEveryThreadIsIsolated(t *testing.T) {
	for _, kind := range []string{"net", "mnt"} {
		outer := inode(t, "/proc/"+parentPID(t)+"/ns/"+kind)
		paths, err := filepath.Glob("/proc/self/task/*/ns/" + kind)
		if err != nil || len(paths) == 0 {
			t.Fatalf("list threads: %v, %d found", err, len(paths))
		}
		for _, p := range paths {
			if inode(t, p) == outer {
				t.Errorf("%s is the outer namespace", p)
			}
		}
	}
}

func parentPID(t *testing.T) string {
	t.Helper()
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	// The process's name may hold blanks; the fields after its bracket are state and parent.
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[1]
}

func deviceNames(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestSurroundings(t *testing.T) {
	if got := deviceNames(t, "/sys/class/net"); !slices.Equal(got, []string{"lo"}) {
		t.Errorf("/sys/class/net shows %v, want lo alone", got)
	}
	if got := deviceNames(t, "/run"); !slices.Equal(got, []string{"netns"}) {
		t.Errorf("/run holds %v, want netns alone", got)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("lo does not work: %v", err)
	}
	c.Close()
}

func TestNamespacesAreApart(t *testing.T) {
	home := inode(t, threadNetns)
	a, b := New(t), New(t)
	seen := []uint64{home}
	for _, ns := range []*NS{a, b} {
		ns.Do(t, func() {
			seen = append(seen, inode(t, threadNetns))
			// The same port in each, on a loopback that works, shows separate stacks.
			l, err := net.Listen("tcp", "127.0.0.1:4789")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		})
		if got := inode(t, ns.Path()); got != seen[len(seen)-1] {
			t.Errorf("%s is inode %d, Do ran in %d", ns.Path(), got, seen[len(seen)-1])
		}
	}
	if seen[0] == seen[1] || seen[1] == seen[2] || seen[0] == seen[2] {
		t.Errorf("namespaces (home, a, b) are not distinct: %v", seen)
	}
	a.Do(t, func() {
		b.Do(t, func() {})
		if got := inode(t, threadNetns); got != seen[1] {
			t.Error("a nested Do did not return to the namespace around it")
		}
	})
	if got := inode(t, threadNetns); got != home {
		t.Error("Do did not return to where it came from")
	}
}

// t.Fatal inside Do ends the goroutine; the thread must be home for whoever gets it next.
func TestDoRestoresAfterGoexit(t *testing.T) {
	ns := New(t)
	inner := inode(t, ns.Path())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ns.Do(t, runtime.Goexit) // what t.Fatal does
	}()
	<-done
	for range 100 {
		var wg sync.WaitGroup
		wg.Go(func() {
			if inode(t, threadNetns) == inner {
				t.Error("a thread was left in the namespace")
			}
		})
		wg.Wait()
	}
}

func TestCommandRunsInside(t *testing.T) {
	ns := New(t)
	out, err := ns.Command("readlink", "/proc/self/ns/net").Output()
	if err != nil {
		t.Fatal(err)
	}
	var want string
	ns.Do(t, func() { want, _ = os.Readlink(threadNetns) })
	if got := strings.TrimSpace(string(out)); got != want {
		t.Errorf("the command ran in %s, want %s", got, want)
	}
	err = ns.Command("sh", "-c", "exit 7").Run()
	if ee, ok := err.(*exec.ExitError); !ok || ee.ExitCode() != 7 {
		t.Errorf("exit code 7 came back as %v", err)
	}
}

func TestCleanupLeavesNothing(t *testing.T) {
	var path string
	var cmd *exec.Cmd
	t.Run("inner", func(t *testing.T) {
		ns := New(t)
		path = ns.Path()
		cmd = ns.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", path, err)
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	select {
	case <-died:
	case <-time.After(10 * time.Second):
		t.Error("the process survived its namespace")
		cmd.Process.Kill()
	}
}

// The test binary as go test runs it, in the conditions that Main must get right.
func TestMainFromOutside(t *testing.T) {
	if os.Getenv("NSTEST_PROBE") != "" {
		t.Skip("this is the probe itself")
	}
	for _, c := range []struct {
		name, probe string
		args, env   []string
		caps        bool
		code        int
		says        string
	}{
		{name: "pass", probe: "pass", caps: true, code: 0},
		{name: "fail", probe: "fail", caps: true, code: 1, says: "asked to fail"},
		{name: "exit code", probe: "exit3", caps: true, code: 3},
		{name: "list", args: []string{"-test.list=TestProbe"}, code: 0, says: "TestProbe"},
		{name: "skip", probe: "fail", code: 0, says: "it needs CAP_SYS_ADMIN"},
		{name: "required", probe: "pass", env: []string{"NETNS_REQUIRED=1"}, code: 1, says: "it needs CAP_SYS_ADMIN"},
		{name: "stray marker", probe: "pass", caps: true, env: []string{outerEnv + "=" + here(t)}, code: 1, says: "unset the variable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code := runProbe(t, c.caps, append(c.env, "NSTEST_PROBE="+c.probe), c.args...)
			if code != c.code || !strings.Contains(out, c.says) {
				t.Errorf("exit code %d, want %d; output, which should say %q:\n%s", code, c.code, c.says, out)
			}
		})
	}
}

func here(t *testing.T) string {
	t.Helper()
	ino, err := netnsInode()
	if err != nil {
		t.Fatal(err)
	}
	return ino
}

// runProbe runs this test binary as a fresh go test would, as nobody unless caps.
func runProbe(t *testing.T, caps bool, env []string, args ...string) (string, int) {
	t.Helper()
	if len(args) == 0 {
		args = []string{"-test.run=^TestProbe$"}
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, outerEnv+"=") || strings.HasPrefix(v, "NETNS_REQUIRED=")
	}), env...)
	if !caps {
		cmd.SysProcAttr = &unix.SysProcAttr{Credential: nobody()}
		cmd.Path = readableBinary(t)
	}
	out, err := cmd.CombinedOutput()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestProbe does what NSTEST_PROBE says, for TestMainFromOutside.
func TestProbe(t *testing.T) {
	switch os.Getenv("NSTEST_PROBE") {
	case "fail":
		t.Fatal("asked to fail")
	case "exit3":
		os.Exit(3)
	}
}

// A signal to the outer process must reach the tests, and its exit must tell of it.
func TestSignalPassesThrough(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSignalTarget$", "-test.v")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, outerEnv+"=") }), "NSTEST_PROBE=wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	if _, err := out.Read(buf); err != nil { // "=== RUN" means that it is inside
		t.Fatal(err)
	}
	cmd.Process.Signal(unix.SIGTERM)
	cmd.Wait()
	st := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !st.Signaled() || st.Signal() != unix.SIGTERM {
		t.Errorf("ended with %v, want death by SIGTERM", cmd.ProcessState)
	}
}

// TestSignalTarget waits to be killed, for TestSignalPassesThrough.
func TestSignalTarget(t *testing.T) {
	if os.Getenv("NSTEST_PROBE") == "wait" {
		time.Sleep(30 * time.Second)
		t.Fatal("no signal came")
	}
}

// FuzzWorkersAreInside lets -fuzz show that the workers run in the coordinator's namespaces.
func FuzzWorkersAreInside(f *testing.F) {
	f.Add(0)
	f.Fuzz(func(t *testing.T, _ int) {
		if got := deviceNames(t, "/sys/class/net"); !slices.Equal(got, []string{"lo"}) {
			t.Fatalf("/sys/class/net shows %v, want lo alone", got)
		}
		if inode(t, threadNetns) == 0 || os.Getenv(outerEnv) == "" {
			t.Fatal("a worker outside")
		}
	})
}

func nobody() *syscall.Credential { return &syscall.Credential{Uid: 65534, Gid: 65534} }

// readableBinary is a copy of the test binary that nobody may execute.
func readableBinary(t *testing.T) string {
	t.Helper()
	bin, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/run", "bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "nstest.test")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bin, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
