// Package port holds what a switch is attached to: the Port and Queue contracts, the counters that every
// port keeps, the TAP device and the packet socket. Tunnels (package encap) and the in-memory ports of tests are Ports too.
package port

import (
	"strings"

	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// ID is a port's index in its switch; 0 is Local, the switch itself. An ID is reused only after every
// worker has passed a quiescent point.
type ID uint16

// Local is the switch itself: the ingress of frames that its slow path originates.
const Local ID = 0

// Dest is where a frame goes: a port and, if that is a tunnel, the peer behind it.
type Dest struct {
	Port ID
	Peer uint32
}

// Caps is the set of offloads that a port takes whole; send does for it what is missing.
type Caps uint8

// A port with CapCsum takes frames with a partial checksum, the others super-frames of that type.
const (
	CapCsum Caps = 1 << iota
	CapTSO4
	CapTSO6
	CapTSOECN
	CapUSO
)

// CapsAll is what a TAP of a current kernel takes.
const CapsAll = CapCsum | CapTSO4 | CapTSO6 | CapTSOECN | CapUSO

// CapNames are the names of single offloads, in the order of their bits, as operators write them.
var CapNames = [...]string{"csum", "tso4", "tso6", "ecn", "uso"}

// String returns the names, or "none".
func (c Caps) String() string {
	var names []string
	for i, name := range CapNames {
		if c&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ",")
}

// Takes says whether a port with these capabilities takes a frame with such metadata as it is.
func (c Caps) Takes(m *frame.Meta) bool {
	need := Caps(0)
	if m.NeedsCsum {
		need = CapCsum
	}
	switch m.GSOType &^ wire.GSOECN {
	case wire.GSOTCPv4:
		need |= CapTSO4
	case wire.GSOTCPv6:
		need |= CapTSO6
	case wire.GSOUDPL4:
		need |= CapUSO
	}
	if m.GSOType&wire.GSOECN != 0 {
		need |= CapTSOECN
	}
	return c&need == need
}

// Port is an attachment point of the switch. Its methods may be called from any goroutine; the queues
// that it returns belong to one worker each.
type Port interface {
	// Name is unique in the switch, for operators: "default/web-0" or "tapyard0".
	Name() string
	// Kind is a lower-case word: "tap", "veth", "host", "packet", "vxlan", "memory".
	Kind() string
	// Caps doesn't change while the port lives.
	Caps() Caps
	// Rx returns the port's receive queues, the same ones at each call.
	Rx() []RxQueue
	// Tx returns a worker's own way to send on the port. It is called once per worker (and once for the
	// slow worker), before the first Send. st receives what is sent and what the kernel refuses.
	Tx(worker int, st *Stats) TxQueue
	// Close ends the port. Whoever attached it to a switch calls it after Detach or Stop.
	Close() error
}

// RxQueue is one independently polled receive side of a Port, owned by exactly one worker.
type RxQueue interface {
	// FD is polled for readability, level-triggered; it is valid until the port's Close.
	FD() int
	// Recv, called by the worker with that index, appends frames out of p to b until b or p is full or nothing
	// is left, and fills their Meta except In. It reports whether more may be waiting. The worker counts the frames of b, since how
	// many wire frames a super-frame stands for is known after parse only; into st go those that Recv
	// itself drops.
	Recv(worker int, b *frame.Burst, p *frame.Pool, st *Stats) (more bool)
}

// Drainer is an RxQueue that takes frames from the kernel before there is room for them.
type Drainer interface {
	RxQueue
	// Drain has each further Recv deliver what the queue holds already and leave in the kernel what it can, for a
	// successor. It says whether anything is held; only the owner of the queue calls it, and no more than it must.
	Drain() (held bool)
}

// TxQueue sends on a Port for one worker. Frames passed to Send belong to the queue until Flush returns;
// the caller releases them then. Of a frame and its clones a burst has one only, unless the port is a tunnel.
type TxQueue interface {
	Send(b *frame.Burst)
	Flush()
}

// JoinedTx is a TxQueue that takes every offload, but doesn't always gain by super-frames.
type JoinedTx interface {
	TxQueue
	// Joins says whether the frames of b should be joined to super-frames, where they can be, before it is sent.
	Joins(b *frame.Burst) bool
}

// Dropper reports what the kernel dropped before the port could receive it (a TAP's own ring), in frames.
// It stands beside the ledger, not in it. Ports without such a count don't implement it.
type Dropper interface{ KernelDrops() (uint64, error) }
