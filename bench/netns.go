package bench

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// benchPrefix begins the name of everything that a benchmark makes: namespaces, temporary folders, its lock.
const benchPrefix = "tapyard-bench-"

const netnsDir = "/run/netns"

func netnsPath(name string) string { return filepath.Join(netnsDir, name) }

// onNetnsThread calls f with the calling goroutine locked to its thread, and restores the thread's network
// namespace afterwards. A thread that can't be restored ends with its goroutine.
func onNetnsThread(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the current network namespace: %w", err)
	}
	defer home.Close()
	err = f()
	if e := netns.Set(home); e != nil {
		return errors.Join(err, fmt.Errorf("return from a network namespace: %w", e))
	}
	runtime.UnlockOSThread()
	return err
}

// inNetns calls f inside the namespace; what f starts on other goroutines is not inside.
func inNetns(name string, f func() error) error {
	return onNetnsThread(func() error {
		ns, err := netns.GetFromName(name)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", name, err)
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", name, err)
		}
		return f()
	})
}

// shareNetnsDir makes the folder of named namespaces a mount point, as ip-netns(8) wants it, and does itself when
// it is none: what was mounted in the folder before would be hidden below, and could not be removed any more.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point
		return err
	}
	return errors.Join(unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""),
		unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, ""))
}

// makeNetns makes a named namespace with lo up.
func makeNetns(name string) error {
	if err := shareNetnsDir(); err != nil {
		return fmt.Errorf("prepare %s: %w", netnsDir, err)
	}
	err := onNetnsThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		defer ns.Close()
		return raise("lo")
	})
	if err != nil {
		return fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return nil
}

// raise sets a device of the current namespace up.
func raise(device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find device %s: %w", device, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("raise device %s: %w", device, err)
	}
	return nil
}

// removeLeftovers removes namespaces and folders of benchmarks that were killed; their processes died with
// them. The caller holds the lock.
func removeLeftovers() error {
	names, err := os.ReadDir(netnsDir)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n.Name(), benchPrefix) {
			if err := netns.DeleteNamed(n.Name()); err != nil {
				return fmt.Errorf("remove leftover network namespace %s: %w", n.Name(), err)
			}
		}
	}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), benchPrefix+"*"))
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// lockBench makes this the only benchmark on the machine until the listener is closed, or the process ends:
// an abstract socket leaves nothing behind.
func lockBench() (net.Listener, error) {
	l, err := net.Listen("unix", "@"+benchPrefix+"lock")
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, errors.New("another 'tapyard bench' is running; two would measure each other: wait for it, or end it")
	}
	return l, err
}

// dropCounters are what the kernel itself dropped at a device.
type dropCounters struct{ rx, tx uint64 }

// readDropCounters reads a device's counters, seen from the pod: tx is the ring towards the switch.
func readDropCounters(netnsName, device string) (d dropCounters, err error) {
	err = inNetns(netnsName, func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find device %s in %s: %w", device, netnsName, err)
		}
		s := link.Attrs().Statistics
		d = dropCounters{rx: s.RxDropped + s.RxErrors, tx: s.TxDropped + s.TxErrors}
		return nil
	})
	return d, err
}
