package port

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/mmsg"
)

// Read packet(7) and net/packet/af_packet.c of the kernel first.

// PacketConfig says which device OpenPacket reads, and what the port is called.
type PacketConfig struct {
	Device   string // in the calling thread's network namespace
	PortName string // for operators
	PortKind string // "packet" when empty
	// Uplink says that the device is the operator's: one that the host uses is refused, and Close gives it
	// back. Otherwise it is the host end of a pod's veth pair, which is ours.
	Uplink bool
}

// Packet is a Port over an AF_PACKET socket on an Ethernet device, with virtio-net headers. The port takes
// the device for itself: the host's own stack doesn't see what arrives there.
type Packet struct {
	cfg   PacketConfig
	index int // of the device
	fd    int
	caps  Caps
	rx    [1]RxQueue
	claim *net.UnixConn // of an uplink, else nil

	lastError atomic.Uint32 // errno of the last frame that was refused for a reason of its own

	mu     sync.Mutex // Close against KernelDrops and Gone, which observers call
	closed bool       // guarded by mu
}

var (
	_ Port    = (*Packet)(nil)
	_ Dropper = (*Packet)(nil)
)

// OpenPacket takes over a device in the calling thread's network namespace and raises it. What a killed
// predecessor left on the device is replaced.
func OpenPacket(cfg PacketConfig) (*Packet, error) {
	p, err := openPacket(cfg, false, listenPacket)
	if err != nil {
		return nil, fmt.Errorf("open device %s as a port: %w", cfg.Device, err)
	}
	return p, nil
}

func openPacket(cfg PacketConfig, guarded bool, listen func(index int) (fd int, err error)) (*Packet, error) {
	link, err := netlink.LinkByName(cfg.Device)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("there is no such device; 'ip link' lists them: %w", err)
	}
	if err != nil {
		return nil, err
	}
	cfg.Device = link.Attrs().Name // it may have been called by another of its names
	if err := usable(link, cfg.Uplink); err != nil {
		return nil, err
	}
	p := &Packet{cfg: cfg, index: link.Attrs().Index, caps: packetCaps()}
	if p.cfg.PortKind == "" {
		p.cfg.PortKind = "packet"
	}
	if cfg.Uplink {
		if p.claim, err = claim(cfg.Device); err != nil {
			return nil, err
		}
	}
	if !guarded {
		if err := isolate(link, cfg.Uplink); err != nil {
			return nil, errors.Join(err, p.disclaim())
		}
	}
	if link.Attrs().RawFlags&unix.IFF_UP == 0 { // first: a socket on a device that is down begins with an error
		err = netlink.LinkSetUp(link)
	}
	if err == nil {
		p.fd, err = listen(p.index)
	}
	if err != nil {
		return nil, errors.Join(err, p.giveBack())
	}
	p.rx[0] = newPacketRx(p)
	return p, nil
}

// giveBack makes an uplink the host's again.
func (p *Packet) giveBack() error {
	if !p.cfg.Uplink {
		return nil
	}
	return errors.Join(release(p.cfg.Device), p.disclaim())
}

// disclaim is for last: what another agent does to the device then isn't undone.
func (p *Packet) disclaim() error {
	if p.claim == nil {
		return nil
	}
	return p.claim.Close()
}

// Name implements Port.
func (p *Packet) Name() string { return p.cfg.PortName }

// Kind implements Port.
func (p *Packet) Kind() string { return p.cfg.PortKind }

// Caps implements Port. Super-frames may be written whole to any device, because the kernel segments what
// the device can't, and completes checksums.
func (p *Packet) Caps() Caps { return p.caps }

// Rx implements Port.
func (p *Packet) Rx() []RxQueue { return p.rx[:] }

// Tx implements Port. All queues share the socket, on which sends take no lock.
func (p *Packet) Tx(_ int, st *Stats) TxQueue { return newPacketTx(p, st) }

// LastError returns what the kernel said when it last refused a frame with reason tx_error, or nil.
func (p *Packet) LastError() error {
	if errno := unix.Errno(p.lastError.Load()); errno != 0 {
		return errno
	}
	return nil
}

// Device returns the device's name.
func (p *Packet) Device() string { return p.cfg.Device }

// Gone says that the device was deleted, or moved to another namespace, under the port; or that the port is
// closed.
func (p *Packet) Gone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return true
	}
	sa, err := unix.Getsockname(p.fd)
	if err != nil {
		return true
	}
	ll, ok := sa.(*unix.SockaddrLinklayer)
	return !ok || ll.Ifindex != p.index // the kernel makes it -1
}

// KernelDrops implements Dropper: the frames that found the socket's buffer full since it was opened. The
// kernel counts in 32 bits.
func (p *Packet) KernelDrops() (uint64, error) {
	p.mu.Lock() // the descriptor's number must not become another socket's meanwhile
	defer p.mu.Unlock()
	if p.closed {
		return 0, fmt.Errorf("read drop counter of port %s: %w", p.cfg.PortName, errClosed)
	}
	n, err := mmsg.Drops(p.fd)
	if err != nil {
		return 0, fmt.Errorf("read drop counter of port %s: %w", p.cfg.PortName, err)
	}
	return n, nil
}

// Close ends the port. An uplink is the host's again and stays up; the host end of a pair stays closed to
// the host's stack, for the next agent.
func (p *Packet) Close() error {
	return errors.Join(p.close(), p.giveBack())
}

func (p *Packet) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	p.closed = true
	return unix.Close(p.fd)
}
