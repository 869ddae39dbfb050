package selftest

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// treatment is what becomes of super-frames between the two devices.
type treatment int

const (
	whole  treatment = iota // nothing
	cut                     // they are cut and their checksums completed, as for a port without offloads
	merged                  // they are cut, and merged again
)

// firstPort is any: the namespaces have no other users.
const firstPort = 5000

// mtu is that of a pod over Ethernet and VXLAN.
const mtu = 1450

// end is a network namespace with a TAP device: a pod.
type end struct {
	tap   *port.TAP
	st    port.Stats
	tx    port.TxQueue
	addrs map[family]net.IP
	netns int // descriptor
}

// topology is two pods and what is between them. It belongs to the thread that made it, which changes namespaces as
// it pleases.
type topology struct {
	ends   [2]*end
	pool   *frame.Pool
	parts  *frame.Pool
	joins  frame.Coalescer
	seen   seen
	number int                // of the last L4 port used
	spoil  func(*frame.Frame) // what a bad kernel does, in tests
}

// seen is what has crossed, so that a proof can say that it met what it is about.
type seen struct {
	partial bool              // a checksum to be completed
	supers  [wire.GSOECN]bool // super-frames by GSO type, which has the flag above it
	merged  bool
}

func newTopology() (_ *topology, err error) {
	t := &topology{
		pool:  frame.NewPool(8*frame.BurstSize, frame.DefaultArena),
		parts: frame.NewPool(frame.BurstSize, frame.DefaultArena),

		number: firstPort,
	}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	for i := range t.ends {
		if t.ends[i], err = newEnd(i + 1); err != nil {
			return nil, err
		}
	}
	for i, e := range t.ends {
		if err = e.acquaint(t.ends[1-i]); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// newEnd moves the thread into a new namespace and makes a pod of it.
func newEnd(number int) (_ *end, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	e := &end{netns: -1, addrs: map[family]net.IP{
		ipv4: net.IPv4(192, 0, 2, byte(number)).To4(), // RFC 5737
		ipv6: net.ParseIP(fmt.Sprintf("2001:db8::%d", number)),
	}}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.netns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	if e.tap, err = port.OpenTAP(port.TAPConfig{Device: device, PortName: device}); err != nil {
		return nil, err
	}
	e.tx = e.tap.Tx(0, &e.st)
	if err = e.raise(number); err != nil {
		return nil, err
	}
	return e, nil
}

const device = "eth0"

func (e *end) raise(number int) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	if err := errors.Join(
		netlink.LinkSetHardwareAddr(link, mac(number)),
		netlink.LinkSetMTU(link, mtu),
		netlink.LinkSetUp(link),
	); err != nil {
		return fmt.Errorf("set up %s: %w", device, err)
	}
	for f, ip := range e.addrs {
		bits := 8 * len(ip)
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(bits-8, bits)}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %v address %v to %s: %w", f, ip, device, err)
		}
	}
	return nil
}

func mac(number int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(number)} }

// acquaint makes the other end a neighbour, so that nothing but what a proof sends has to cross.
func (e *end) acquaint(other *end) error {
	return e.enter(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		for _, ip := range other.addrs {
			n := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip, State: netlink.NUD_PERMANENT,
				HardwareAddr: mac(int(ip[len(ip)-1]))}
			if err := netlink.NeighSet(n); err != nil {
				return fmt.Errorf("add neighbour %v: %w", ip, err)
			}
		}
		return nil
	})
}

// enter runs f in the end's namespace.
func (e *end) enter(f func() error) error {
	if err := unix.Setns(e.netns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	return f()
}

func (e *end) close() {
	if e == nil {
		return
	}
	if e.tap != nil {
		_ = e.tap.Close() // the device isn't persistent: it goes with it
	}
	if e.netns >= 0 {
		_ = unix.Close(e.netns)
	}
}

func (t *topology) close() {
	for _, e := range t.ends {
		e.close()
	}
}

// relay moves what waits at both devices to the other one. The treatment is of what comes from the first.
func (t *topology) relay(how treatment) {
	t.forward(t.ends[0], t.ends[1], how)
	t.forward(t.ends[1], t.ends[0], whole)
}

func (t *topology) forward(from, to *end, how treatment) {
	var b frame.Burst
	from.tap.Rx()[0].Recv(0, &b, t.pool, &from.st)
	for _, f := range b.Frames() {
		t.seen.note(f)
		if t.spoil != nil {
			t.spoil(f)
		}
		if how == whole {
			t.send(to, f)
			continue
		}
		t.pieces(to, f, how)
	}
	b.Release()
}

func (t *topology) send(to *end, f *frame.Frame) {
	var one frame.Burst
	one.Append(f)
	to.tx.Send(&one)
	to.tx.Flush()
}

// pieces sends a frame cut, and perhaps merged again.
func (t *topology) pieces(to *end, f *frame.Frame, how treatment) {
	if !f.IsSuper() {
		if f.NeedsCsum {
			frame.CompleteChecksum(f)
		}
		t.send(to, f)
		return
	}
	var s frame.Segmenter
	s.Start(f)
	for more := true; more; {
		var b frame.Burst
		more = s.AppendTo(&b, t.pool)
		if how == merged {
			t.merge(to, &b)
		}
		to.tx.Send(&b)
		to.tx.Flush()
		b.Release()
	}
}

// merge sends a burst of segments merged, unless there is nothing to merge; the burst is empty then.
func (t *topology) merge(to *end, b *frame.Burst) {
	saved := t.joins.Start(b)
	if saved == 0 {
		return
	}
	t.seen.merged = true
	for more := true; more; {
		var out frame.Burst
		more = t.joins.AppendTo(&out, t.parts)
		to.tx.Send(&out)
		to.tx.Flush()
		out.Release()
	}
}

func (s *seen) note(f *frame.Frame) {
	s.partial = s.partial || f.NeedsCsum
	if f.IsSuper() {
		s.supers[f.GSOType&^wire.GSOECN] = true
	}
}
