package vswitch

import (
	"fmt"

	"tapyard/switch/port"
)

// Count is a number of frames as held in memory, and of the wire frames that they stand for.
type Count struct {
	Frames uint64 `json:"frames"`
	Wire   uint64 `json:"wire_frames"`
}

func (c *Count) add(t *port.Tally) {
	c.Frames += t.Frames.Load()
	c.Wire += t.Wire.Load()
}

// Ledger is the account of every frame since the start: what came, rx + originated + copied + split,
// against what went, tx + merged + consumed + drops. The difference is in flight, zero at rest.
type Ledger struct {
	Rx         Count `json:"rx"`
	Originated Count `json:"originated"`
	Copied     Count `json:"copied"`
	Split      Count `json:"split"`
	Tx         Count `json:"tx"`
	Merged     Count `json:"merged"`
	Consumed   Count `json:"consumed"`
	Drops      Count `json:"drops"`
	PoolLive   int64 `json:"pool_live"` // frames that the workers' pools have out
}

func (l *Ledger) add(ps *portState) {
	for i := range ps.stats {
		st := &ps.stats[i]
		l.Rx.add(&st.Rx)
		l.Originated.add(&st.Originated)
		l.Copied.add(&st.Copied)
		l.Split.add(&st.Split)
		l.Tx.add(&st.Tx)
		l.Merged.add(&st.Merged)
		l.Consumed.add(&st.Consumed)
		for r := range st.Drops {
			l.Drops.add(&st.Drops[r])
		}
	}
}

// InFlight returns what came less what went. Read while the switch runs, it may be off by the bursts that
// were counted at one end only.
func (l *Ledger) InFlight() (frames, wireFrames int64) {
	in := l.Rx.Frames + l.Originated.Frames + l.Copied.Frames + l.Split.Frames
	out := l.Tx.Frames + l.Merged.Frames + l.Consumed.Frames + l.Drops.Frames
	inWire := l.Rx.Wire + l.Originated.Wire + l.Copied.Wire + l.Split.Wire
	outWire := l.Tx.Wire + l.Merged.Wire + l.Consumed.Wire + l.Drops.Wire
	return int64(in - out), int64(inWire - outWire)
}

// Check returns an error that shows the whole account when it doesn't balance. At rest that is a bug in
// the switch.
func (l *Ledger) Check() error {
	frames, wireFrames := l.InFlight()
	if frames == 0 && wireFrames == 0 && l.PoolLive == 0 {
		return nil
	}
	return fmt.Errorf("the ledger doesn't balance (a bug in the switch): %d frames and %d wire frames in flight at rest, %d buffers out: "+
		"rx %v + originated %v + copied %v + split %v, tx %v + merged %v + consumed %v + drops %v (frames and wire frames)",
		frames, wireFrames, l.PoolLive, l.Rx, l.Originated, l.Copied, l.Split, l.Tx, l.Merged, l.Consumed, l.Drops)
}

// Ledger adds up all ports, those detached included.
func (sw *Switch) Ledger() Ledger {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	l := sw.departed
	for _, ps := range sw.snapshot.Load().ports {
		if ps != nil {
			l.add(ps)
		}
	}
	for _, ps := range sw.leaving {
		l.add(ps)
	}
	for _, w := range append([]*worker{sw.slow.worker}, sw.workers...) {
		l.PoolLive += w.live.Load()
	}
	return l
}
