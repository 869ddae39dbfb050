package encap

import (
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// maxPartials is how many incomplete messages a queue holds, 1.1 MiB: one per source whose slices the kernel doesn't hand
// over in one piece. Those of a burst come from few.
const maxPartials = 16

// partials are the incomplete messages of one receive queue, at most one of each source address and port. Slices are
// taken in order: what a network makes of datagrams that it reorders within a flow is a loss.
type partials struct {
	list [maxPartials]partial
	last int    // the one that was used last
	tick uint64 // at each use
	open int    // with slices
}

// partial is what there is of a message, or the trace of one that was given up.
type partial struct {
	from   sockaddr
	peer   *Peer
	used   uint64      // tick
	next   sliceHeader // expected; 0 if there is no message
	lost   sliceHeader // of the last message that was given up
	tos    uint8       // the outer one: that of the first slice, or that of one with CE
	slices int
	size   int    // of each but the last, bytes
	buf    []byte // maxMessageLen bytes
	n      int    // of buf
}

// of returns the source's entry, or nil.
func (s *partials) of(from *sockaddr) *partial {
	if s.list[s.last].from == *from {
		return &s.list[s.last]
	}
	for i := range s.list {
		if s.list[i].from == *from {
			s.last = i
			return &s.list[i]
		}
	}
	return nil
}

// entry returns the source's entry, which may be a new one in the place of the one that wasn't used for the longest time.
func (s *partials) entry(from *sockaddr, peer *Peer, st *port.Stats) *partial {
	p := s.of(from)
	if p == nil {
		for i := range s.list {
			if s.list[i].used < s.list[s.last].used {
				s.last = i
			}
		}
		p = &s.list[s.last]
		s.giveUp(p, st)
		*p = partial{from: *from, buf: p.buf}
	}
	s.tick++
	p.used, p.peer = s.tick, peer
	return p
}

// take returns the message that a slice with header h and n bytes in all begins, or goes on with; or nil if it does
// neither. What it interrupts is given up.
func (s *partials) take(from *sockaddr, peer *Peer, h sliceHeader, n int, st *port.Stats) *partial {
	p := s.entry(from, peer, st)
	if p.next == h && p.fits(h, n) {
		return p
	}
	s.giveUp(p, st)
	if h.index() > 0 || n-prefixLen(h.last()) > frame.MaxLen {
		p.lose(h)
		return nil
	}
	if p.buf == nil {
		p.buf = make([]byte, maxMessageLen) // once per entry
	}
	p.next, p.tos, p.slices, p.size, p.n = h, 0, 0, n, 0
	s.open++
	return p
}

// fits says that the expected slice may have n bytes: all have one size but the last, and the frame isn't too long.
func (p *partial) fits(h sliceHeader, n int) bool {
	return (n == p.size || n < p.size && h.index() == h.last()) && p.n+n-prefixLen(h.last()) <= frame.MaxLen
}

// add appends the expected slice.
func (p *partial) add(slice []byte, tos uint8) {
	if p.slices == 0 || tos&wire.ECNMask == wire.ECNCE {
		p.tos = tos
	}
	p.n += copy(p.buf[p.n:], slice)
	p.slices++
	p.next += nextSlice
}

// abandon gives up what there is of a message from the source, since another one has followed it.
func (s *partials) abandon(from *sockaddr, st *port.Stats) {
	if s.open == 0 {
		return
	}
	if p := s.of(from); p != nil {
		s.giveUp(p, st)
	}
}

// giveUp drops the slices of a message, if there are any, and notes the loss for its sender.
func (s *partials) giveUp(p *partial, st *port.Stats) {
	if p.next == 0 {
		return
	}
	p.lose(p.next)
	dropSlices(drop.SliceLost, p.slices, p.buf[:p.n], p.from.addr(), st)
	s.close(p)
}

// close forgets the message.
func (s *partials) close(p *partial) {
	p.next = 0
	s.open--
}

// lose counts a message that isn't complete once, however many of its slices arrive.
func (p *partial) lose(h sliceHeader) {
	if !h.sameMessage(p.lost) {
		p.lost = h
		p.peer.link.rxLost.Add(1)
	}
}
