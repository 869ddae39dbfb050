package attach

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// errGone says that a pod's namespace, or the device in it, no longer exists.
var errGone = errors.New("gone")

// netnsID tells namespaces apart while the kernel runs.
type netnsID struct{ dev, ino uint64 }

func netnsIDOf(fd int) (netnsID, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return netnsID{}, errors.New("it is no network namespace")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return netnsID{}, fmt.Errorf("fstat: %w", err)
	}
	return netnsID{st.Dev, st.Ino}, nil
}

// identify accepts any network namespace but the agent's own, where a pod's address and default route would
// be the node's.
func (m *Manager) identify(fd int) (netnsID, error) {
	if fd < 0 {
		return netnsID{}, errors.New("its descriptor did not come with the request")
	}
	id, err := netnsIDOf(fd)
	if err != nil {
		return netnsID{}, err
	}
	own, err := openNetns("/proc/thread-self/ns/net")
	if err != nil {
		return netnsID{}, err
	}
	defer unix.Close(own)
	if ownID, err := netnsIDOf(own); err != nil || ownID == id {
		return netnsID{}, errors.Join(errors.New("it is the agent's own network namespace"), err)
	}
	return id, nil
}

// openNetns does not wait at a path that became something else.
func openNetns(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// openRecorded opens the namespace that the attachment was made in, wherever it is mounted or has a process by now; the error
// wraps errGone unless it is still there.
func (m *Manager) openRecorded(a Attachment) (int, error) {
	if a.BootID != m.bootID {
		return -1, fmt.Errorf("namespace %s %w: the machine was booted since", a.NetnsPath, errGone)
	}
	fd, err := a.openAt(a.NetnsPath)
	if !errors.Is(err, errGone) {
		return fd, err
	}
	paths, perr := netnsPaths()
	if perr != nil {
		return -1, perr
	}
	if path := paths[a.NetnsIno]; path == "" {
		return -1, err
	} else if fd, err = a.openAt(path); err != nil {
		return -1, err
	}
	if err := a.isIn(fd); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// openAt opens the attachment's namespace if the path leads there.
func (a Attachment) openAt(path string) (int, error) {
	fd, err := openNetns(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return -1, fmt.Errorf("namespace %s %w", a.NetnsPath, errGone)
	}
	if err != nil {
		return -1, err
	}
	if id, err := netnsIDOf(fd); err != nil || id != (netnsID{a.NetnsDev, a.NetnsIno}) {
		unix.Close(fd)
		return -1, fmt.Errorf("namespace %s %w: something else is there now", a.NetnsPath, errGone)
	}
	return fd, nil
}

// isIn says that the attachment's device is in the namespace, by an error that wraps errGone if not: the number of a
// namespace that has ended is soon another's.
func (a Attachment) isIn(fd int) error {
	p, err := openPod(fd)
	if err != nil {
		return err
	}
	defer p.Close()
	_, err = p.ours(a.Key())
	return err
}

// inNetns calls f on a thread inside the namespace. A thread that can't come back is ended, or whatever the
// agent did next might happen in the pod.
func inNetns(fd int, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- enterAndCall(fd, f) }()
	return <-done
}

func enterAndCall(fd int, f func() error) error {
	runtime.LockOSThread() // a goroutine that ends locked takes its thread along
	home, err := openNetns("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	err = f()
	if unix.Setns(home, unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return err
}
