package vswitch

import (
	"tapyard/switch/frame"
	"tapyard/switch/port"
)

// outPort is what a burst sends to one port.
type outPort struct {
	ps    *portState
	burst frame.Burst
}

// outPorts groups the frames of a burst by egress. byID grows with the highest port ID; dirty lists those
// in use, in the order of their first frame.
type outPorts struct {
	byID  []*outPort
	dirty []*outPort
}

func (o *outPorts) add(ps *portState, f *frame.Frame) {
	for int(ps.id) >= len(o.byID) { // once per port that this worker ever sends to
		o.byID = append(o.byID, &outPort{})
	}
	out := o.byID[ps.id]
	if out.burst.Len() == 0 {
		out.ps = ps
		o.dirty = append(o.dirty, out)
	}
	out.burst.Append(f)
}

// full says that the port's burst has no room for a frame more.
func (o *outPorts) full(ps *portState) bool {
	return int(ps.id) < len(o.byID) && o.byID[ps.id].burst.Full()
}

// send is the fifth stage: each port gets its frames in one call, and they go back to the pool.
func (w *worker) send() {
	for _, out := range w.out.dirty {
		w.sendTo(out.ps, &out.burst)
		out.burst.Release()
		out.ps = nil
	}
	w.out.dirty = w.out.dirty[:0]
}

// sendTo hands the burst over whole if the port takes every offload in it, which is the usual case, and
// does the missing work for the port otherwise. What belongs together goes as one super-frame to a device of
// a kernel that takes all kinds of them; a tunnel would have to cut it.
func (w *worker) sendTo(ps *portState, b *frame.Burst) {
	if ps.received != nil && w.in.id != port.Local { // what the switch says itself is no traffic of others
		if w.shape(ps, b); b.Len() == 0 {
			return
		}
	}
	tx, caps := ps.tx[w.id], ps.port.Caps()
	for i, f := range b.Frames() {
		if !caps.Takes(&f.Meta) {
			w.segs.send(w, ps, b.Frames(), i)
			return
		}
	}
	if caps == port.CapsAll && wantsJoined(ps, tx, b) {
		if saved := w.segs.joins.Start(b); saved > 0 {
			w.segs.sendJoined(w, tx, saved)
			return
		}
	}
	tx.Send(b)
	tx.Flush()
}

// wantsJoined says whether a port that takes everything takes a burst for less when what belongs together is joined.
func wantsJoined(ps *portState, tx port.TxQueue, b *frame.Burst) bool {
	if j, chooses := tx.(port.JoinedTx); chooses {
		return j.Joins(b)
	}
	return ps.role != RoleTunnel
}

// segmenter does in software what a port doesn't take: it cuts super-frames and completes checksums. For one
// that takes everything it does the inverse.
type segmenter struct {
	iter  frame.Segmenter
	joins frame.Coalescer
	pool  *frame.Pool
	part  frame.Burst
}

// newSegmenter has room for one burst of segments of the usual size; a burst of larger ones is cut into
// several sends.
func newSegmenter() segmenter {
	return segmenter{pool: frame.NewPool(frame.BurstSize, 2*(frame.Headroom+frame.MaxLen))}
}

// send sends frames in order, segmenting where it must; those before first need nothing.
func (s *segmenter) send(w *worker, ps *portState, frames []*frame.Frame, first int) {
	caps := ps.port.Caps()
	for i, f := range frames {
		switch {
		case i < first || caps.Takes(&f.Meta):
			s.part.Append(f)
		case f.IsSuper():
			s.flush(ps.tx[w.id])
			s.cut(w, ps, f)
			continue
		default:
			frame.CompleteChecksum(f)
			s.part.Append(f)
		}
	}
	s.flush(ps.tx[w.id])
}

// cut sends one super-frame as its segments. Split counts the frames that appear by it.
func (s *segmenter) cut(w *worker, ps *portState, f *frame.Frame) {
	tx := ps.tx[w.id]
	w.st.Split.Add(uint64(f.Wire()-1), 0)
	s.iter.Start(f)
	for more := true; more; {
		more = s.iter.AppendTo(&s.part, s.pool)
		sendParts(tx, &s.part)
	}
}

// sendJoined sends the burst that joins has begun on. Merged counts the frames that disappear by it.
func (s *segmenter) sendJoined(w *worker, tx port.TxQueue, saved int) {
	w.st.Merged.Add(uint64(saved), 0)
	for more := true; more; {
		more = s.joins.AppendTo(&s.part, s.pool)
		sendParts(tx, &s.part)
	}
}

// flush sends what has gathered; the frames belong to the burst that send was given.
func (s *segmenter) flush(tx port.TxQueue) {
	if s.part.Len() > 0 {
		tx.Send(&s.part)
		tx.Flush()
		s.part.Reset()
	}
}
