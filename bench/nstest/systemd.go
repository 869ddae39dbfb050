package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	systemdProgram = "/usr/lib/systemd/systemd"
	// systemdVerb is the first argument of a test binary that becomes a service manager.
	systemdVerb = "nstest-systemd"
	// bootPatience is for a machine under load.
	bootPatience = 20 * time.Second
)

// Systemd is a service manager of a test, PID 1 of a PID namespace in one of the test's network namespaces. Its root is
// empty but for the machine's /usr and /dev, and what a test puts there; namespaces that New makes appear in its
// /run/netns. Of units it has the targets that services refer to.
type Systemd struct {
	pid int
}

// NewSystemd boots a service manager, which ends with the test. It has the shared folders at the same paths as the test,
// not below /tmp, of which a service may have its own. A machine without systemd fails the test.
func NewSystemd(t testing.TB, ns *NS, shared ...string) *Systemd {
	t.Helper()
	if _, err := os.Stat(systemdProgram); err != nil {
		t.Fatalf("nstest: %v (Debian's package systemd)", err)
	}
	cgroups, err := makeCgroups()
	if err != nil {
		t.Fatalf("nstest: make cgroups for a service manager: %v", err)
	}
	console, err := os.Create(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", append([]string{systemdVerb, ns.Path(), strings.Join(cgroups, ":")}, shared...)...)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Pdeathsig: unix.SIGKILL}
	started, waited := make(chan error), make(chan struct{})
	go func() { // by a thread of its own, whose end is this process's: then the kernel sends Pdeathsig
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-waited
	}()
	if err := <-started; err != nil {
		t.Fatalf("nstest: start a service manager: %v", err)
	}
	s := &Systemd{pid: cmd.Process.Pid}
	t.Cleanup(func() {
		cmd.Process.Kill() // and with it all that runs there
		cmd.Wait()
		close(waited)
		if t.Failed() {
			text, _ := os.ReadFile(console.Name())
			t.Logf("the service manager's console:\n%s", text)
		}
		for _, cgroup := range cgroups {
			if err := removeCgroup(cgroup); err != nil {
				t.Errorf("nstest: remove a cgroup of a service manager: %v", err)
			}
		}
	})
	for deadline := time.Now().Add(bootPatience); ; time.Sleep(20 * time.Millisecond) {
		if out, err := s.Command("systemctl", "is-system-running").CombinedOutput(); strings.TrimSpace(string(out)) == "running" {
			return s
		} else if time.Now().After(deadline) {
			t.Fatalf("nstest: the service manager isn't running after %v: %s %v", bootPatience, out, err)
		}
	}
}

// Path returns where a file of the service manager's root is for the test.
func (s *Systemd) Path(file string) string { return fmt.Sprintf("/proc/%d/root%s", s.pid, file) }

// Command returns a command that executes the program beside the service manager.
func (s *Systemd) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", strconv.Itoa(s.pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--", name}, args...)...)
}

// becomeSystemd turns this process, the first of its namespaces, into a service manager; it returns only on failure.
func becomeSystemd(netns, cgroups string, shared []string) error {
	runtime.LockOSThread()
	file, err := os.Open(netns)
	if err != nil {
		return err
	}
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", netns, err)
	}
	for cgroup := range strings.SplitSeq(cgroups, ":") {
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	if err := makeRoot(shared); err != nil {
		return err
	}
	env := []string{"container=nstest", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
		"SYSTEMD_UNIT_PATH=/etc/systemd/system:/usr/local/lib/systemd/system", "SYSTEMD_GENERATOR_PATH=/nowhere"}
	return unix.Exec(systemdProgram, []string{systemdProgram, "--system", "--log-target=console", "--show-status=no"}, env)
}

// mount holds the arguments of mount(2).
type mount struct {
	from, to, fstype string
	flags            uintptr
	data             string
}

// makeRoot makes the new root and moves there.
func makeRoot(shared []string) error {
	const root = "/tmp"
	mounts := []mount{
		{"", "/", "", unix.MS_REC | unix.MS_SLAVE, ""},
		{"root", "", "tmpfs", 0, "mode=0755"},
		{"/usr", "/usr", "", unix.MS_BIND | unix.MS_REC, ""},
		{"local", "/usr/local", "tmpfs", 0, "mode=0755"},
		{"/dev", "/dev", "", unix.MS_BIND | unix.MS_REC, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
		{"run", "/run", "tmpfs", 0, "mode=0755"},
		{netnsDir, netnsDir, "", unix.MS_BIND | unix.MS_REC, ""},
		{"cgroup", "/sys/fs/cgroup", "tmpfs", 0, "mode=0755"},
	}
	hierarchies, err := ownCgroups()
	if err != nil {
		return err
	}
	for _, h := range hierarchies { // or systemd, which only knows cpu and cpuacct joined, leaves them out where they are apart
		mounts = append(mounts, mount{"cgroup", "/sys/fs/cgroup/" + h.name, h.fstype, 0, h.data})
	}
	for _, dir := range shared {
		mounts = append(mounts, mount{dir, dir, "", unix.MS_BIND | unix.MS_REC, ""})
	}
	for _, m := range mounts {
		to := root + m.to
		if m.to == "/" {
			to = "/"
		}
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.from, to, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.from, to, err)
		}
	}
	if err := fillRoot(root); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "old"); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/old", unix.MNT_DETACH); err != nil {
		return err
	}
	// As on a machine: what a container runtime mounts is seen by services with mounts of their own.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// targets are units that others refer to; here they have nothing to wait for.
var targets = []string{"default", "sysinit", "basic", "multi-user", "network-online", "shutdown", "umount"}

func fillRoot(root string) error {
	units := filepath.Join(root, "etc/systemd/system")
	for _, dir := range []string{units, root + "/var/lib", root + "/var/log", root + "/tmp", root + "/old", root + "/root"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+link, filepath.Join(root, link)); err != nil {
			return err
		}
	}
	files := map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": "root:x:0:\n",
		"etc/machine-id": strings.Repeat("1", 32) + "\n", "etc/os-release": "ID=nstest\n"}
	for _, target := range targets {
		files["etc/systemd/system/"+target+".target"] = "[Unit]\nDefaultDependencies=no\n"
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
