package port

import (
	"bytes"
	"net/netip"
	"sync/atomic"
	"time"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
)

// Counter counts for one writer and any number of readers. Workers add up a burst in a local variable
// and store once, because an atomic store costs about 20 cycles and a burst has up to 64 frames.
type Counter struct{ v atomic.Uint64 }

// Add adds n; only the owning worker may call it.
func (c *Counter) Add(n uint64) { c.v.Store(c.v.Load() + n) }

// Load returns the count, from any goroutine.
func (c *Counter) Load() uint64 { return c.v.Load() }

// Tally counts frames as they are held in memory and the wire frames that they stand for.
type Tally struct{ Frames, Wire Counter }

// Add counts frames frames that stand for wire wire frames.
func (t *Tally) Add(frames, wire uint64) {
	t.Frames.Add(frames)
	t.Wire.Add(wire)
}

// Stats are the counters of one port and one worker: the worker writes, anybody reads. Seen from the
// switch, rx is into it and tx out of it. Drops are counted at the port that a frame came from, except
// those of sending, which count at the port that it was for.
type Stats struct {
	_                [64]byte // keeps neighbours in an array of Stats off our cache lines
	Rx, Tx           Tally
	RxBytes, TxBytes Counter
	Originated       Tally // frames made by the switch itself: ARP and ND answers, ICMP
	Copied           Tally // further frames made by flooding
	Split            Tally // further frames made by segmenting in send, without wire frames, and by fragmenting
	Merged           Tally // frames that went on in another one, which stands for theirs on the wire: none of its own
	Consumed         Tally // frames that the switch itself was the destination of
	Drops            [drop.Count]Tally

	Now      *int64 // the worker's clock, Unix time in nanoseconds; nil keeps no examples
	examples [drop.Count]atomic.Pointer[Example]
}

// Example is a frame that was dropped. Nothing in it changes.
type Example struct {
	At   int64      // Unix time in nanoseconds
	From netip.Addr // underlay address that it came from, in the tunnel's own datagram; or none
	VNI  uint32     // of a frame
	Peer uint32     // of a frame from or to a tunnel: VTEP index
	Len  int        // bytes
	Head []byte     // the first of them, at most exampleHead
}

const (
	// exampleHead is what an example keeps: Ethernet, VLAN, IPv6 with two extension headers and TCP are
	// 14 + 4 + 40 + 16 + 20 B.
	exampleHead = 96
	// exampleEvery is how often a reason's example is renewed: an operator wants a recent one, and a flood
	// of drops should cost no allocation each.
	exampleEvery = int64(time.Second)
)

// Drop drops the frame b, which stands for n wire frames, for the reason. m is what is known beside its bytes.
func (st *Stats) Drop(r drop.Reason, n int, b []byte, m *frame.Meta) {
	st.Drops[r].Add(1, uint64(n))
	if st.wants(r) {
		st.keep(r, Example{VNI: m.VNI, Peer: m.Peer}, b)
	}
}

// RxDropped counts a frame or datagram that arrived and was dropped before it could be handed on. from is
// where a tunnel's datagram came from.
func (st *Stats) RxDropped(r drop.Reason, b []byte, from netip.Addr) {
	st.Rx.Add(1, 1)
	st.RxBytes.Add(uint64(len(b)))
	st.Drops[r].Add(1, 1)
	if st.wants(r) {
		st.keep(r, Example{From: from}, b)
	}
}

// wants says that the reason has no recent example.
func (st *Stats) wants(r drop.Reason) bool {
	if st.Now == nil {
		return false
	}
	last := st.examples[r].Load()
	return last == nil || *st.Now-last.At >= exampleEvery
}

// keep makes b the reason's example.
func (st *Stats) keep(r drop.Reason, e Example, b []byte) {
	e.At, e.Len, e.Head = *st.Now, len(b), bytes.Clone(b[:min(len(b), exampleHead)])
	st.examples[r].Store(&e)
}

// Example returns the last frame that was kept of those dropped for the reason, or nil. It may be called
// from any goroutine.
func (st *Stats) Example(r drop.Reason) *Example { return st.examples[r].Load() }
