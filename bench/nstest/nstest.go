// Package nstest gives tests network namespaces of their own under plain go test.
//
// A package whose tests touch the kernel's network calls Main from its TestMain. The test binary is then
// re-executed once inside private network and mount namespaces, so that every one of its threads is
// isolated from the start: /run is an empty tmpfs (/run/netns and sockets are private), /sys shows the
// private namespace's devices, and lo is up. New makes further namespaces, the "pods" and "nodes" of a
// test. Everything vanishes with the process, whatever it died of.
package nstest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outerEnv marks the re-executed process. Its value is the inode of the network namespace that was left,
// so that a marker inherited by accident isolates nobody.
const outerEnv = "TAPYARD_NSTEST_OUTER"

// Main runs the package's tests in private namespaces and ends the process; it never returns. Without the
// privilege to make namespaces it skips all tests and says what is missing, or fails if NETNS_REQUIRED=1.
func Main(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == execVerb {
		fatal(execInside(os.Args[2], os.Args[3:]))
	}
	if len(os.Args) >= 4 && os.Args[1] == systemdVerb {
		fatal(becomeSystemd(os.Args[2], os.Args[3], os.Args[4:]))
	}
	flag.Parse()
	outer := os.Getenv(outerEnv)
	switch {
	case flag.Lookup("test.list").Value.String() != "":
		os.Exit(m.Run()) // runs no test
	case outer == "":
		os.Exit(reexec())
	}
	if err := isolate(outer); err != nil {
		fatal(err)
	}
	os.Exit(m.Run())
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "nstest:", err)
	os.Exit(1)
}

// reexec runs this binary again in new namespaces and returns its exit code.
func reexec() int {
	if lacking := lackingCaps(); len(lacking) > 0 {
		return unprivileged("it needs " + strings.Join(lacking, ", "))
	}
	ino, err := netnsInode()
	if err != nil {
		fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		fatal(fmt.Errorf("find the test binary: %w", err))
	}
	cmd := exec.Command(exe)
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), outerEnv+"="+ino)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// The kernel sends Pdeathsig when the thread that forked ends, hence the lock.
	runtime.LockOSThread()
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return unprivileged("clone with CLONE_NEWNET and CLONE_NEWNS was refused (seccomp?)")
		}
		fatal(fmt.Errorf("start %s in new namespaces: %w", exe, err))
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	if cmd.ProcessState == nil {
		fatal(fmt.Errorf("wait for the tests: %w", err))
	}
	return exitAs(cmd.ProcessState.Sys().(syscall.WaitStatus))
}

// exitAs returns the exit code of a process that ended so, or dies of the same signal.
func exitAs(st syscall.WaitStatus) int {
	if !st.Signaled() {
		return st.ExitStatus()
	}
	signal.Reset(st.Signal())
	unix.Kill(os.Getpid(), st.Signal())
	return 128 + int(st.Signal()) // for a signal that kills nobody by default
}

// unprivileged says why no test ran and returns the exit code for it.
func unprivileged(why string) int {
	if os.Getenv("NETNS_REQUIRED") == "1" {
		fmt.Fprintf(os.Stderr, "nstest: FAIL: can't make network namespaces: %s, and NETNS_REQUIRED=1 forbids to skip; run as root\n", why)
		return 1
	}
	fmt.Fprintf(os.Stderr, "nstest: SKIP all tests of this package: can't make network namespaces: %s; run as root\n", why)
	return 0
}

// lackingCaps names the effective capabilities that the tests need and this process has not.
func lackingCaps() []string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return []string{fmt.Sprintf("capget (%v)", err)}
	}
	var lacking []string
	for _, c := range []struct {
		bit  uint
		name string
	}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_NET_RAW, "CAP_NET_RAW"}} {
		if data[0].Effective&(1<<c.bit) == 0 {
			lacking = append(lacking, c.name)
		}
	}
	return lacking
}

// isolate finishes what the clone flags began: mounts that stay here, and a loopback that works.
func isolate(outer string) error {
	ino, err := netnsInode()
	if err != nil {
		return err
	}
	if ino == outer {
		return fmt.Errorf("%s=%s is set, but this process is still in that network namespace; unset the variable", outerEnv, outer)
	}
	if isFuzzWorker() {
		return nil // the coordinator that started it has done the rest
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on /run: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount sysfs on /sys: %w", err)
	}
	if err := os.Mkdir(netnsDir, 0o755); err != nil {
		return err
	}
	// A mount of its own, and shared, so that what is mounted there later also is where Systemd has it.
	if err := unix.Mount(netnsDir, netnsDir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", netnsDir, err)
	}
	if err := unix.Mount("", netnsDir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return loopbackUp()
}

func isFuzzWorker() bool {
	f := flag.Lookup("test.fuzzworker")
	return f != nil && f.Value.String() == "true"
}

// netnsInode identifies the calling thread's network namespace.
func netnsInode() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(threadNetns, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", threadNetns, err)
	}
	return strconv.FormatUint(st.Ino, 10), nil
}

// loopbackUp raises lo in the calling thread's network namespace.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	return nil
}
