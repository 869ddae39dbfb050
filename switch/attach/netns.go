package attach

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

// errGone says that a pod's namespace, or the device in it, no longer exists.
var errGone = errors.New("gone")

// netnsOf is port.NetnsOf for a descriptor that comes from elsewhere.
func netnsOf(fd int) (port.Netns, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return port.Netns{}, errors.New("it is no network namespace")
	}
	return port.NetnsOf(fd)
}

// netns returns the pod's namespace.
func (a Attachment) netns() port.Netns { return port.Netns{Dev: a.NetnsDev, Ino: a.NetnsIno} }

// identify accepts any network namespace but the agent's own, where a pod's address and default route would
// be the node's.
func (m *Manager) identify(fd int) (port.Netns, error) {
	if fd < 0 {
		return port.Netns{}, errors.New("its descriptor did not come with the request")
	}
	id, err := netnsOf(fd)
	if err != nil {
		return port.Netns{}, err
	}
	own, err := openNetns("/proc/thread-self/ns/net")
	if err != nil {
		return port.Netns{}, err
	}
	defer unix.Close(own)
	if ownID, err := netnsOf(own); err != nil || ownID == id {
		return port.Netns{}, errors.Join(errors.New("it is the agent's own network namespace"), err)
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
	if id, err := netnsOf(fd); err != nil || id != a.netns() {
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
