package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Read rtnetlink(7) first.

// MTUOf returns the MTU of the interface that has the address.
func MTUOf(a netip.Addr) (int, error) {
	addrs, err := netlink.AddrList(nil, familyOf(a))
	if err != nil {
		return 0, fmt.Errorf("list the addresses of this node: %w", err)
	}
	for _, have := range addrs {
		if have.IP.Equal(a.AsSlice()) {
			link, err := netlink.LinkByIndex(have.LinkIndex)
			if err != nil {
				return 0, fmt.Errorf("interface with address %s: %w", a, err)
			}
			return link.Attrs().MTU, nil
		}
	}
	return 0, fmt.Errorf("configuration: underlay %s is on no interface of this node; use one that 'ip address' lists", a)
}

// settle is how long WatchMTU waits for further news after some: an address that moves to another interface
// is deleted and added.
const settle = 100 * time.Millisecond

// WatchMTU calls changed with the MTU of the interface that has the address: at once, and whenever it has
// become another one, in the calling goroutine. While no interface has the address, the last MTU stands. It
// returns nil when ctx ends. The interfaces are those of the calling thread's network namespace.
func WatchMTU(ctx context.Context, addr netip.Addr, changed func(mtu int)) error {
	if err := watchMTU(ctx, addr, changed); err != nil {
		return fmt.Errorf("watch the MTU of the underlay %s: %w", addr, err)
	}
	return nil
}

func watchMTU(ctx context.Context, addr netip.Addr, changed func(mtu int)) error {
	file, err := listenNews()
	if err != nil {
		return err
	}
	defer file.Close()
	news, err := file.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { file.SetReadDeadline(time.Unix(1, 0)) })() // ends what waits
	for last := 0; ; {
		if mtu, err := MTUOf(addr); err == nil && mtu != last { // after an error there is news to come
			last = mtu
			changed(mtu)
		}
		if err := awaitNews(ctx, news); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// listenNews opens a socket that tells of changes of interfaces and addresses.
func listenNews() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to netlink groups %#x: %w", groups, err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// awaitNews returns some time after there was news. What it says is not read: messages may be lost (ENOBUFS),
// the interfaces' state can't.
func awaitNews(ctx context.Context, news syscall.RawConn) error {
	var failed error
	if err := news.Read(func(fd uintptr) (done bool) {
		done, failed = drain(int(fd))
		return done
	}); err != nil || failed != nil {
		return errors.Join(err, failed)
	}
	select {
	case <-ctx.Done():
	case <-time.After(settle):
	}
	return nil
}

// drain empties the socket and says whether it wasn't empty.
func drain(fd int) (some bool, err error) {
	var buf [1]byte // the rest of a message is cut
	for {
		switch _, _, err := unix.Recvfrom(fd, buf[:], 0); err {
		case nil, unix.ENOBUFS:
			some = true
		case unix.EINTR:
		case unix.EAGAIN:
			return some, nil
		default:
			return true, fmt.Errorf("read from netlink socket: %w", err)
		}
	}
}

// SetMTU changes the MTU of tapyard0 and of the host's routes through it.
func (h *Host) SetMTU(mtu int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.cfg.Subnets {
		if err := checkMTU(mtu, s); err != nil {
			return fmt.Errorf("host device %s: %w", HostDevice, err)
		}
	}
	if err := netlink.LinkSetMTU(h.link, mtu); err != nil {
		return fmt.Errorf("host device %s: set MTU %d: %w", HostDevice, mtu, err)
	}
	h.cfg.MTU = mtu
	return h.setRoutes()
}

// SetMTU gives all published pods, except those of networks with an MTU of their own, another MTU, which
// Config.MTU returns by now: an ADD that is under way has either asked before and is waited for, or gets the
// new one. The pods are tried to the last one; the error names those that keep the old MTU. A kill leaves
// what the next Restore completes.
func (m *Manager) SetMTU(ctx context.Context, mtu int) error {
	var errs []error
	for _, n := range m.networks {
		if n.mtu == 0 {
			errs = append(errs, n.checkMTU(mtu))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, e := range m.snapshot() {
		if n := m.networkOf(e.a.VNI); n == nil || n.mtu != 0 {
			continue
		}
		err := ctx.Err()
		mtu := limited(mtu, e.a.MTULimit)
		if err == nil {
			err = m.setPodMTU(e.a.Key(), mtu)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("pod %s: set MTU %d: %w", e.a.Name, mtu, err))
		}
	}
	return errors.Join(errs...)
}

// setPodMTU leaves alone what is not published, which gets the MTU when it is restored, and pods that are
// gone, which Sweep finds.
func (m *Manager) setPodMTU(key string, mtu int) error {
	defer m.locks.lock(key)()
	e, known := m.get(key)
	if !known || e.dev == nil || e.a.MTU == mtu {
		return nil
	}
	fd, err := m.openRecorded(e.a)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p, err := openPod(fd)
	if err != nil {
		return err
	}
	defer p.Close()
	link, err := p.ours(key)
	if errors.Is(err, errGone) {
		return nil
	}
	if err == nil {
		e.a, err = m.resize(p, link, e.a, mtu)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[key].a = e.a
	return err
}

// resize sets the MTU of the attachment's device, which is link in the pod, and of its other end, and records
// it: last, so that a record never says what the device hasn't. A record that says so is left alone: at a start,
// writing each costs an fsync while pods wait.
func (m *Manager) resize(p *pod, link netlink.Link, a Attachment, mtu int) (Attachment, error) {
	if a.PortType == Veth {
		host, err := hostEnd(a.Key())
		if err == nil && host != nil {
			err = netlink.LinkSetMTU(host, mtu)
		}
		if err != nil {
			return a, err
		}
	}
	device := mtu
	if has := link.Attrs().MTU; has < a.MTU {
		device = min(has, mtu) // the plugin tuning, behind us in the chain, has lowered it
	}
	if err := p.LinkSetMTU(link, device); err != nil {
		return a, err
	}
	if a.MTU == mtu {
		return a, nil
	}
	a.MTU = mtu
	return a, m.store.put(a)
}

// follow gives a pod that is being restored the present MTU. One that pods can't have leaves it the old one,
// with a line in the log, rather than cutting it off.
func (m *Manager) follow(p *pod, link netlink.Link, a Attachment) (Attachment, error) {
	n := m.networkOf(a.VNI)
	mtu := m.mtuOf(n, a.MTULimit)
	if err := n.checkMTU(mtu); err != nil {
		m.cfg.Log.Error("pod keeps its MTU", "port", a.Name, "mtu", a.MTU, "err", err)
		return a, nil
	}
	a, err := m.resize(p, link, a, mtu)
	if err != nil {
		return a, fmt.Errorf("set MTU %d: %w", mtu, err)
	}
	return a, nil
}

// mtuOf returns the present MTU of a pod of the network, whose configuration may have a limit of its own.
func (m *Manager) mtuOf(n *network, limit int) int { return limited(cmp.Or(n.mtu, m.cfg.MTU()), limit) }

// limited returns the MTU, or the limit if there is one that is lower.
func limited(mtu, limit int) int {
	if limit > 0 {
		return min(mtu, limit)
	}
	return mtu
}

// minMTU is the least that IPv6 works with (RFC 8200 section 5); the kernel takes it off a device with less.
const minMTU = 1280

// checkMTU says why a device with an address of the subnet can't have the MTU, in bytes.
func checkMTU(mtu int, subnet netip.Prefix) error {
	if mtu < minMTU && subnet.Addr().Is6() {
		return fmt.Errorf("an MTU of %d leaves less than the %d bytes that IPv6 needs; set 'mtu', or raise the underlay's", mtu, minMTU)
	}
	return nil
}

// checkMTU says why pods of the network can't have the MTU.
func (n *network) checkMTU(mtu int) error {
	for _, p := range n.pools {
		if err := checkMTU(mtu, p.Subnet()); err != nil {
			return err
		}
	}
	return nil
}
