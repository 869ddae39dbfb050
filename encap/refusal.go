package encap

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapyard/switch/wire"
)

// lastRefusal is what the kernel last said when it didn't take a datagram. It is one word, so that workers
// may note it without a lock: the peer's index (32 bits), the datagram's bytes without the UDP header
// (16 bits; a longer one is none), errno (16 bits; Linux's end at 133). 0 is none.
type lastRefusal struct{ v atomic.Uint64 }

func (r *lastRefusal) note(peer uint32, n int, errno unix.Errno) {
	r.v.Store(uint64(peer)<<32 | uint64(min(n, 1<<16-1))<<16 | uint64(errno))
}

func (r *lastRefusal) load() (peer uint32, n int, errno unix.Errno) {
	v := r.v.Load()
	return uint32(v >> 32), int(uint16(v >> 16)), unix.Errno(uint16(v))
}

// LastError returns why the kernel last refused a datagram, naming the peer and what to do, or nil. Such
// frames are counted as drop.TxError, or drop.TooBig for unix.EMSGSIZE, which means that the underlay's MTU
// is too small for the pods'. It may be called from any goroutine.
//
// A full queue of the underlay's device isn't among the errors: without IP_RECVERR the kernel keeps it to
// itself (the device's tc statistics have it), and with it, ICMP errors that anybody can forge would fail
// later sends. An ICMP message from further on, such as port unreachable, isn't either.
func (t *Tunnel) LastError() error {
	peer, n, errno := t.refusal.load()
	if errno == 0 {
		return nil
	}
	if p := t.cfg.Peers.Lookup(peer); p != nil {
		return fmt.Errorf("send from %v to peer %s at %v: %w%s", t.cfg.Local, p.Name, p.Underlay, errno, t.advice(n, errno, p.Underlay))
	}
	return fmt.Errorf("send from %v to a peer that is gone since: %w", t.cfg.Local, errno)
}

// advice says what an errno of sendmsg means for a datagram of n bytes, and where to look.
func (t *Tunnel) advice(n int, errno unix.Errno, to netip.Addr) string {
	switch errno {
	case unix.EMSGSIZE:
		overhead := Overhead(t.cfg.Local.Is4())
		outer := n + overhead - wire.VXLANLen - wire.EthernetLen
		return fmt.Sprintf(": the underlay's MTU is smaller than this datagram's %d bytes, outer IP header included ('ip route get %v' names the device): "+
			"the pods' MTU must be at most the underlay's less %d", outer, to, overhead)
	case unix.EPERM:
		return ": a firewall on this node drops it ('nft list ruleset', hook output or postrouting)"
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL: // the latter are what prohibit and blackhole routes give
		return fmt.Sprintf(": this node's routes have no way there ('ip route get %v from %v')", to, t.cfg.Local)
	}
	return ""
}

// segmenting says whether the kernel cuts messages into datagrams.
func (t *Tunnel) segmenting() bool { return !t.cfg.Singly && t.unsegments.Load() == 0 }

// refuseSegments has every datagram sent on its own from now on if errno is one of those by which kernels say that
// a route's device can't have messages cut for it. They were the only thing that it didn't like.
func (t *Tunnel) refuseSegments(errno unix.Errno) {
	switch errno {
	case unix.EIO, unix.EINVAL, unix.EOPNOTSUPP:
		t.unsegments.Store(uint32(errno))
	}
}

// Segmentation returns nil while the kernel would cut messages into datagrams (UDP_SEGMENT), or what it said when it would
// not; then each one is sent on its own, as long as the Tunnel is open. It may be called from any goroutine.
func (t *Tunnel) Segmentation() error {
	if errno := unix.Errno(t.unsegments.Load()); errno != 0 {
		return fmt.Errorf("send several datagrams from %v in one message (UDP_SEGMENT): %w", t.cfg.Local, errno)
	}
	return nil
}

// Trains says for operators which way several datagrams cross the kernel in one message, or why they don't.
func (t *Tunnel) Trains() string {
	if t.cfg.Singly {
		return "off"
	}
	if err := t.Segmentation(); err != nil {
		return "UDP_GRO; can't " + err.Error()
	}
	return "UDP_SEGMENT, UDP_GRO"
}
