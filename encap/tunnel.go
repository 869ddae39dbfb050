// Package encap carries frames to other nodes. A Tunnel is a port.Port that wraps frames in VXLAN over UDP
// (RFC 7348) and unwraps what arrives, interoperable with the kernel's vxlan device and Open vSwitch; a
// VTEPTable says which nodes are at the far end. Which peer a frame goes to or came from, and in which VNI,
// travels beside it in frame.Meta. Peers that agree to it exchange super-frames whole, in slices, and small frames in
// bundles; README.md in this folder is the format's definition.
package encap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapyard/switch/mmsg"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// DefaultPort is VXLAN's UDP port (RFC 7348 section 5).
const DefaultPort = 4789

// Config says where a Tunnel ends on this node.
type Config struct {
	Name    string     // the Port's name, for operators
	Local   netip.Addr // underlay address of this node, whose family is the Tunnel's
	Port    uint16     // UDP port, the peers' too; 0 is DefaultPort
	Workers int        // receive queues, at least; the slow worker, number Workers, sends too
	Peers   *VTEPTable // shared with whoever keeps it up to date
	Singly  bool       // every datagram is sent and received on its own, without UDP_SEGMENT and UDP_GRO
	Plain   bool       // VXLAN only: no peer is asked for, or offered, a faster wire
	// Inherited are receive sockets that a predecessor has left open, with what arrived meanwhile. They are the Tunnel's
	// unless Open fails, as it does if they are bound to another address.
	Inherited []int
}

// Tunnel is a Port that reaches all peers of the underlay address's family.
//
// Outgoing datagrams have DF set and a UDP checksum: RFC 7348 section 5 says that it SHOULD be zero over
// IPv4, but receivers merge only datagrams that have one. Incoming ones may do without, over IPv6 too: see
// receiveOptions. One flow keeps one outer source port.
//
// The ECN field is carried through as in RFC 6040's normal mode, so that a congested underlay can slow
// down the pods' connections without dropping. The DSCP follows RFC 2983's pipe model: outgoing datagrams
// have 0, and the inner one crosses unseen and untouched. Copying it out would let any pod send in the
// underlay's class for network control. The kernel's vxlan device and Open vSwitch do the same by default.
type Tunnel struct {
	cfg Config
	rx  []port.RxQueue
	tx  []*txQueue // by worker

	refusal    lastRefusal
	unsegments atomic.Uint32 // errno by which the kernel said that it can't cut messages; 0 while it can
	control    *control      // nil in a plain Tunnel

	mu  sync.Mutex // Close against KernelDrops, which observers call
	fds []int      // the receive sockets, as many as rx, then the source sockets and control's; guarded by mu
}

var (
	_ port.Port    = (*Tunnel)(nil)
	_ port.Dropper = (*Tunnel)(nil)
)

// Open opens the Tunnel's sockets in the calling thread's network namespace. When the UDP port is taken,
// the error says by whom and wraps unix.EADDRINUSE.
func Open(cfg Config) (*Tunnel, error) {
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	cfg.Local = cfg.Local.Unmap()
	t := &Tunnel{cfg: cfg}
	if err := t.open(); err != nil {
		t.fds = t.fds[min(len(t.fds), len(cfg.Inherited)):]
		t.Close()
		return nil, fmt.Errorf("open tunnel %s: %w", cfg.Name, err)
	}
	return t, nil
}

func (t *Tunnel) open() error {
	if err := checkUnderlay(t.cfg.Local); err != nil {
		return err
	}
	if t.cfg.Workers < 1 || t.cfg.Peers == nil {
		return fmt.Errorf("%d workers, peers %p: want at least one worker and a VTEPTable", t.cfg.Workers, t.cfg.Peers)
	}
	var err error
	t.fds = slices.Clone(t.cfg.Inherited)
	if t.fds, err = listen(t.fds, t.local(), t.cfg.Workers, receiveOptions(t.cfg.Local, !t.cfg.Singly)...); err != nil {
		return err
	}
	for _, fd := range t.fds {
		t.rx = append(t.rx, newRxQueue(fd, t.cfg.Peers))
	}
	sources, err := openSources(t.cfg.Local, (t.cfg.Workers+1)*lanes)
	t.fds = append(t.fds, sources...)
	if err != nil {
		return err
	}
	for worker := range t.cfg.Workers + 1 {
		t.tx = append(t.tx, newTxQueue(t, [lanes]int(sources[worker*lanes:])))
	}
	if t.cfg.Plain {
		return nil
	}
	return t.negotiate()
}

// negotiate begins to ask peers for a faster wire, and to answer theirs.
func (t *Tunnel) negotiate() error {
	fds, err := openSources(t.cfg.Local, 1)
	t.fds = append(t.fds, fds...)
	if err != nil {
		return err
	}
	probe, err := openUDP(netip.AddrPortFrom(t.cfg.Local, 0))
	if err != nil {
		return err
	}
	t.fds = append(t.fds, probe)
	t.control = newControl(t, fds[0], probe)
	for _, q := range t.rx {
		q.(*rxQueue).hellos = t.control.hellos
	}
	go t.control.run()
	return nil
}

// wire returns the size of the datagrams in which a peer takes slices, or 0 if it doesn't. worth says that there is
// something for which they would pay.
func (t *Tunnel) wire(p *Peer, worth bool) int {
	if worth && t.control != nil && !p.link.wanted.Load() {
		p.link.wanted.Store(true)
		select {
		case t.control.wants <- p:
		default:
			p.link.wanted.Store(false)
		}
	}
	return int(p.link.size.Load())
}

func (t *Tunnel) local() netip.AddrPort { return netip.AddrPortFrom(t.cfg.Local, t.cfg.Port) }

// Name implements port.Port.
func (t *Tunnel) Name() string { return t.cfg.Name }

// Kind implements port.Port.
func (t *Tunnel) Kind() string { return "vxlan" }

// Caps implements port.Port: super-frames are given their segments' headers and checksums while they are gathered.
func (t *Tunnel) Caps() port.Caps { return port.CapsAll }

// Rx implements port.Port. The kernel chooses the queue by the outer addresses and ports, so a flow stays
// on one.
func (t *Tunnel) Rx() []port.RxQueue { return t.rx }

// FDs returns the descriptors of the receive sockets, for a successor. They stay the Tunnel's.
func (t *Tunnel) FDs() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.fds[:len(t.rx)])
}

// Tx implements port.Port, for workers 0 to Config.Workers; the last is the slow worker.
func (t *Tunnel) Tx(worker int, st *port.Stats) port.TxQueue {
	q := t.tx[worker]
	q.st = st
	return q
}

// KernelDrops implements port.Dropper: datagrams that found a receive socket's buffer full. Of several that the kernel
// has put into one, it counts one.
func (t *Tunnel) KernelDrops() (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fds == nil {
		return 0, fmt.Errorf("tunnel %s: %w", t.cfg.Name, unix.EBADF)
	}
	var sum uint64
	for _, fd := range t.fds[:len(t.rx)] {
		n, err := mmsg.Drops(fd)
		if err != nil {
			return 0, fmt.Errorf("tunnel %s: %w", t.cfg.Name, err)
		}
		sum += n
	}
	return sum, nil
}

// Close implements port.Port.
func (t *Tunnel) Close() error {
	if t.control != nil {
		t.control.stop()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, fd := range t.fds {
		errs = append(errs, unix.Close(fd))
	}
	t.fds = nil
	return errors.Join(errs...)
}

// Overhead returns the bytes that the Tunnel puts around a pod's packet: the inner Ethernet header, VXLAN,
// UDP and the outer IP header. 50 over IPv4, 70 over IPv6.
func Overhead(ipv4 bool) int {
	ip := wire.IPv6Len
	if ipv4 {
		ip = wire.IPv4MinLen
	}
	return wire.EthernetLen + wire.VXLANLen + wire.UDPLen + ip
}
