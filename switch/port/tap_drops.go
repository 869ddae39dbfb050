package port

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var _ Dropper = (*TAP)(nil)

// KernelDrops implements Dropper: the frames that the kernel dropped because the device's ring was full or nobody
// was attached. The kernel calls them tx_dropped, seen from the pod; the count is the device's since it was
// created. The device is asked by netlink where TAPConfig.NetnsPath says it lives, in a socket that is made
// and closed by each call: once in some seconds is often enough.
func (t *TAP) KernelDrops() (uint64, error) {
	device, err := t.deviceName()
	if err != nil {
		return 0, fmt.Errorf("read drop counter of port %s: %w", t.cfg.PortName, err)
	}
	h, err := handleAt(t.cfg.NetnsPath)
	if err != nil {
		return 0, fmt.Errorf("read drop counter of port %s: %w", t.cfg.PortName, err)
	}
	defer h.Close()
	link, err := h.LinkByName(device)
	if err != nil {
		return 0, fmt.Errorf("read drop counter of port %s: device %s in network namespace %q: %w",
			t.cfg.PortName, device, t.cfg.NetnsPath, err)
	}
	return link.Attrs().Statistics.TxDropped, nil
}

// deviceName asks our own descriptor, because the device may have been renamed since it was attached.
func (t *TAP) deviceName() (string, error) {
	t.mu.Lock() // the descriptor's number must not become another device's meanwhile
	defer t.mu.Unlock()
	if t.closed {
		return "", fmt.Errorf("the port is closed: %w", unix.EBADF)
	}
	var ifr unix.Ifreq
	if err := unix.IoctlIfreq(t.fds[0], unix.TUNGETIFF, &ifr); err != nil {
		return "", fmt.Errorf("TUNGETIFF (EBADFD means that the device is gone): %w", err)
	}
	return ifr.Name(), nil
}

// handleAt returns a netlink socket in the namespace that path is bound to, or in the agent's own.
func handleAt(path string) (*netlink.Handle, error) {
	if path == "" {
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket in network namespace %s: %w", path, err)
	}
	return h, nil
}
