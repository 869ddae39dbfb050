package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ExitCode is an error of which the user has been told already: the process only ends with it.
type ExitCode int

// Error implements error.
func (c ExitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// The exit codes of a command that can't be run, as shells have them.
const (
	labExitCantRun  ExitCode = 126
	labExitNotFound ExitCode = 127
)

// netnsOf returns the name of the namespace of a pod, a node, "internet" or "lan".
func (l *Lab) netnsOf(name string) (string, error) {
	if netnsName := labPrefix + name; slices.Contains(l.netns(), netnsName) {
		return netnsName, nil
	}
	var names []string
	for _, n := range l.netns() {
		names = append(names, strings.TrimPrefix(n, labPrefix))
	}
	return "", fmt.Errorf("the lab has no %q; it has %s", name, strings.Join(names, ", "))
}

// labExec replaces this process by the command inside a namespace of the lab, so that its exit code, its
// signals and the terminal are its own. It returns only on failure.
func labExec(netnsName string, argv []string) error {
	program, err := exec.LookPath(argv[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "tapyard lab exec:", err)
		return labExitNotFound
	}
	runtime.LockOSThread() // exec keeps the calling thread's namespaces
	if err := labEnter(netnsName); err != nil {
		return err
	}
	err = unix.Exec(program, argv, os.Environ())
	fmt.Fprintf(os.Stderr, "tapyard lab exec: %s: %v\n", program, err)
	return labExitCantRun
}

// labEnter moves the thread into the namespace for good, with a /sys that shows it, as `ip netns exec` does.
func labEnter(netnsName string) error {
	file, err := os.Open(netnsPath(netnsName))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", netnsName, err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	err = errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""),
		unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
	)
	if err != nil {
		return fmt.Errorf("mount /sys of network namespace %s: %w", netnsName, err)
	}
	return nil
}

// strangers names the processes in the lab's namespaces that aren't the lab's, such as those that `lab exec`
// left in the background. They keep their namespace alive in the kernel until they end.
func (l *Lab) strangers() []string {
	ours := map[string]string{} // identity of a namespace to its name
	for _, name := range l.netns() {
		var st unix.Stat_t
		if unix.Stat(netnsPath(name), &st) == nil {
			ours[fmt.Sprintf("net:[%d]", st.Ino)] = name
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	var found []string
	for _, proc := range procs {
		ns, err := os.Readlink(filepath.Join(proc, "ns/net"))
		if err != nil || ours[ns] == "" {
			continue // has ended, or lives elsewhere
		}
		comm, _ := os.ReadFile(filepath.Join(proc, "comm"))
		found = append(found, fmt.Sprintf("process %s (%s) in %s", filepath.Base(proc), strings.TrimSpace(string(comm)), ours[ns]))
	}
	return found
}
