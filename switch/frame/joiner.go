package frame

// Joiner makes super-frames of frames that come one after the other out of some buffer, by the rules of Coalescer,
// copying each byte once into a pool: what a network card calls GRO. Only neighbours are joined, since whoever
// sent them in one piece had them in one piece.
//
// The zero value is ready. It doesn't allocate; it serves one worker at a time.
type Joiner struct {
	pool  *Pool
	room  []byte // reserved in pool; the open frame begins there. nil is none
	n     int    // bytes of it
	count int    // frames in it
	meta  Meta   // of the first
	train train  // valid if count > 1

	// Views of the first frame, in room, and of the next one, outside of any pool.
	first, next Frame
}

// Open says that there is a frame to which others may be joined.
func (j *Joiner) Open() bool { return j.room != nil }

// Begin opens a frame with a copy of b, at most MaxLen bytes, and its metadata, without offloads. It returns false
// when p has no room for a super-frame. No frame is open, and none is reserved or committed in p until Finish.
func (j *Joiner) Begin(p *Pool, b []byte, m Meta) bool {
	room := p.Reserve(0, MaxLen)
	if room == nil {
		return false
	}
	j.pool, j.room, j.meta, j.count = p, room, m, 1
	j.n = copy(room, b)
	j.first.buf = room[:j.n]
	return true
}

// Add joins a copy of b to the open frame, or returns false if there is none or it doesn't go on with it.
func (j *Joiner) Add(b []byte, m Meta) bool {
	j.next.buf = b
	if j.room == nil || j.count == BurstSize || m != j.meta || !showFlow(j.first.buf, b) || !j.train.join(&j.first, &j.next, j.count) {
		return false
	}
	j.n += copy(j.room[j.n:], b[j.train.hdrLen:])
	j.count++
	return true
}

// showFlow says whether two frames are of one flow, but for ports.
func showFlow(a, b []byte) bool {
	expected, _ := pairing(b)
	_, own := pairing(a)
	return uint32(expected) == uint32(own) && flowOf(a) != 0 && flowOf(b) != 0
}

// Finish returns the open frame, which is the caller's.
func (j *Joiner) Finish() *Frame {
	if j.count > 1 {
		j.train.finish(j.room[:j.n], &j.meta, len(j.first.buf))
	}
	f := j.pool.Commit(j.n)
	f.Meta = j.meta
	j.room = nil
	return f
}
