package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	netnsDir    = "/run/netns"
	threadNetns = "/proc/thread-self/ns/net"

	// execVerb is the first argument of a test binary that only enters a namespace and executes a program.
	execVerb = "nstest-exec"
)

var lastNS atomic.Uint32

// NS is a network namespace of a test. Its methods may be called from any goroutine.
type NS struct {
	name string
	file *os.File

	mu   sync.Mutex
	cmds []*exec.Cmd // killed at cleanup
}

// New makes a network namespace with lo up, bound to a path under /run/netns. It is removed when the test
// ends, after the processes that Command started in it were killed. The package's TestMain must call Main.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Getenv(outerEnv) == "" {
		t.Fatal("nstest.New without nstest.Main: call it from the package's TestMain")
	}
	ns := &NS{name: fmt.Sprintf("test%d", lastNS.Add(1))}
	if err := ns.create(); err != nil {
		t.Fatalf("nstest: make namespace %s: %v", ns.name, err)
	}
	t.Cleanup(func() {
		if err := ns.remove(); err != nil {
			t.Errorf("nstest: remove namespace %s: %v", ns.name, err)
		}
	})
	return ns
}

// Name returns the name by which `ip netns` knows the namespace.
func (ns *NS) Name() string { return ns.name }

// Path returns the file that the namespace is bound to.
func (ns *NS) Path() string { return filepath.Join(netnsDir, ns.name) }

// FD returns a descriptor of the namespace; it belongs to ns and is closed when the test ends.
func (ns *NS) FD() int { return int(ns.file.Fd()) }

// Do calls f on the calling goroutine, its thread locked and inside the namespace. t.Fatal works as usual
// in f; goroutines that f starts are not inside. Calls may be nested.
func (ns *NS) Do(t testing.TB, f func()) {
	t.Helper()
	enter := func() error { return unix.Setns(ns.FD(), unix.CLONE_NEWNET) }
	if err := onThread(enter, f); err != nil {
		t.Fatalf("nstest: enter namespace %s: %v", ns.name, err)
	}
}

// Command returns a command that executes the program inside the namespace, with this process's mounts;
// it is started, waited for and configured as any exec.Cmd. What still runs at the test's end is killed.
func (ns *NS) Command(name string, args ...string) *exec.Cmd {
	// A fork inherits its thread's namespace, but only an extra exec lets the caller pick the moment of Start.
	cmd := exec.Command("/proc/self/exe", append([]string{execVerb, ns.Path(), name}, args...)...)
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.cmds = append(ns.cmds, cmd)
	return cmd
}

// execInside replaces this process by a program inside the namespace at path; it returns only on failure.
func execInside(path string, argv []string) error {
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", path, err)
	}
	return fmt.Errorf("execute %s: %w", program, unix.Exec(program, argv, os.Environ()))
}

func (ns *NS) create() error {
	if err := os.WriteFile(ns.Path(), nil, 0o444); err != nil {
		return err
	}
	var err error
	unshare := func() error { return unix.Unshare(unix.CLONE_NEWNET) }
	if e := onThread(unshare, func() { err = ns.bind() }); e != nil {
		return e
	}
	return err
}

// bind is called inside the new namespace.
func (ns *NS) bind() error {
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := unix.Mount(threadNetns, ns.Path(), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind to %s: %w", ns.Path(), err)
	}
	var err error
	ns.file, err = os.Open(ns.Path())
	return err
}

// remove tolerates a path that the test itself has unbound or removed, as a container runtime does.
func (ns *NS) remove() error {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for _, cmd := range ns.cmds {
		if cmd.Process != nil {
			cmd.Process.Kill() // an error means that it has ended
		}
	}
	ns.file.Close()
	if err := unix.Unmount(ns.Path(), unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unbind %s: %w", ns.Path(), err)
	}
	if err := os.Remove(ns.Path()); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// onThread locks the thread, enters a namespace, calls f and restores the namespace, however f ends.
func onThread(enter func() error, f func()) error {
	runtime.LockOSThread()
	home, err := os.Open(threadNetns)
	if err == nil {
		err = enter()
	}
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		defer home.Close()
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("nstest: can't leave a namespace: %v", err)) // or later tests run in it
		}
		runtime.UnlockOSThread()
	}()
	f()
	return nil
}
