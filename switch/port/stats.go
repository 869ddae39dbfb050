package port

import (
	"sync/atomic"

	"tapyard/switch/drop"
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
	Split            Tally // further frames made by segmenting in send; no wire frames
	Consumed         Tally // frames that the switch itself was the destination of
	Drops            [drop.Count]Tally
}

// Count drops a frame of n wire frames for the reason.
func (st *Stats) Count(r drop.Reason, n int) { st.Drops[r].Add(1, uint64(n)) }

// RxDropped counts a frame of n bytes that arrived and was dropped before it could be handed on.
func (st *Stats) RxDropped(r drop.Reason, n int) {
	st.Rx.Add(1, 1)
	st.RxBytes.Add(uint64(n))
	st.Count(r, 1)
}
