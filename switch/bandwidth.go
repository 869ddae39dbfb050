package vswitch

import (
	"math"
	"sync/atomic"
	"time"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// Read ITU-T I.371 annex A first: the generic cell rate algorithm is a token bucket in one word, the time at
// which the bucket is full again.

// Rate is what a port may send or be sent, in bits of whole frames as they are on the wire, without preamble and
// checksum. The zero value has no limit.
type Rate struct {
	Bits  uint64 // a second
	Burst uint64 // at once, in bits
}

// meter holds the frames of one direction of a port to a Rate. All workers share it. A frame goes as long as
// there is any credit, and what it takes too much the next ones wait for: so a super-frame longer than the burst
// passes, and the rate is kept in the long run.
type meter struct {
	perByte float64 // nanoseconds
	burst   int64   // nanoseconds in which it is earned
	slack   int64   // how much later than the burst full can be
	full    atomic.Int64
}

// maxMetered is the longest thing that a meter takes at once: a super-frame of 65,535 bytes in segments of 48
// with headers of 54 to 94 bytes each, on the wire.
const maxMetered = 256 << 10

// newMeter returns nil for no limit.
func newMeter(r Rate) *meter {
	if r.Bits == 0 {
		return nil
	}
	perBit := float64(time.Second) / float64(r.Bits)
	// A burst of a day is no limit that anyone notices; Kubernetes gives 2^31 bits, whatever the rate.
	m := &meter{perByte: 8 * perBit, burst: int64(min(float64(r.Burst)*perBit, float64(24*time.Hour)))}
	m.slack = int64(min(maxMetered*m.perByte, math.MaxInt64/4)) + int64(time.Second) // workers look at the clock at different times
	return m
}

// admit returns how many of the frames, from the first on, the rate allows now, in Unix time in nanoseconds.
func (m *meter) admit(now int64, frames []*frame.Frame) (n int) {
	for {
		was := m.full.Load()
		full := max(was, now)
		if full-now > m.burst+m.slack { // the clock was set back
			full = now
		}
		bytes, left := 0, now+m.burst-full
		for n = 0; n < len(frames) && m.cost(bytes) < left; n++ {
			bytes += frames[n].WireBytes()
		}
		if n == 0 || m.full.CompareAndSwap(was, full+m.cost(bytes)) {
			return n
		}
	}
}

func (m *meter) cost(bytes int) int64 { return int64(float64(bytes) * m.perByte) }

// police drops what a port sends beyond its rate, before it costs anything. A busy station still answers Probe.
func (w *worker) police() {
	frames := w.burst.Frames()
	for i := w.in.sent.admit(w.now, frames); i < len(frames); i++ {
		if v := &w.verdicts[i]; v.reason == drop.None && wire.Ethernet(frames[i].Bytes()).Dst() != proberMAC {
			v.reason = drop.BandwidthEgress
		}
	}
}

// shape drops what is for a port beyond its rate.
func (w *worker) shape(ps *portState, b *frame.Burst) {
	frames := b.Frames()
	n := ps.received.admit(w.now, frames)
	for _, f := range frames[n:] {
		ps.stats[w.id].Drop(drop.BandwidthIngress, f.Wire(), f.Bytes(), &f.Meta)
		f.Release()
	}
	b.Truncate(n)
}
