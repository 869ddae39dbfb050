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
// created. The device is asked by netlink where it is, in a socket that is made and closed by each call: once in some
// seconds is often enough.
func (t *TAP) KernelDrops() (uint64, error) {
	link, err := t.link()
	if err != nil {
		return 0, fmt.Errorf("read drop counter of port %s: %w", t.cfg.PortName, err)
	}
	return link.Attrs().Statistics.TxDropped, nil
}

// link returns the device as netlink knows it, wherever it is.
func (t *TAP) link() (netlink.Link, error) {
	device, ns, err := t.place()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket in the network namespace of device %s: %w", device, err)
	}
	defer h.Close()
	link, err := h.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	return link, nil
}

// place asks our own descriptor for the device's name and network namespace, which the caller closes: it may have been
// renamed and moved since it was attached.
func (t *TAP) place() (device string, ns netns.NsHandle, err error) {
	t.mu.Lock() // the descriptor's number must not become another device's meanwhile
	defer t.mu.Unlock()
	if t.closed {
		return "", netns.None(), errClosed
	}
	var ifr unix.Ifreq
	if err := unix.IoctlIfreq(t.fds[0], unix.TUNGETIFF, &ifr); err != nil {
		return "", netns.None(), fmt.Errorf("TUNGETIFF (EBADFD means that the device is gone): %w", err)
	}
	ns, err = netnsOf(t.fds[0])
	return ifr.Name(), ns, err
}
