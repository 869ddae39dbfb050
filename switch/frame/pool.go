package frame

import "fmt"

const (
	// MaxLen is the longest frame in bytes: an Ethernet header and an IP packet of 65,535 bytes.
	MaxLen = 14 + 65535
	// Headroom is the number of free bytes before each frame: a virtio-net header (10 bytes, 12 with the
	// merge field) rounded up so that frames begin at multiples of 16.
	Headroom = 16
	// DefaultArena holds 8 super-frames (8 × 65,565 B = 524,520 B), so that a burst of them stays in a
	// 1 MiB L2 cache between the read and the write: bursts of 64 of them would not.
	DefaultArena = 8*(Headroom+MaxLen) + 64
	// windowStride is the distance of windows: an odd number of cache lines, so that the frames of a batch, which
	// begin in one each, share the sets of an L1 cache evenly.
	windowStride = (Headroom + MaxLen + 63) / 64 * 64
)

const _ = uint(windowStride/64%2 - 1)

// Pool hands out frames for one worker out of one contiguous arena. Frames of a burst lie directly one
// behind the other, each as long as it turned out to be, so small frames cost few cache lines and TLB
// entries although every one of them might have been 64 KiB long. When the last live frame is released,
// the arena is empty again: workers run to completion, so that is once per burst. Not safe for
// concurrent use.
//
// Behind the arena a pool may have windows, for who receives several frames at once and doesn't know their lengths
// before: each takes a frame of MaxLen. Only the pages that frames reached are ever backed by memory.
type Pool struct {
	arena   []byte // and the windows behind it
	size    int    // of the arena without them
	used    int    // bytes of the arena that live frames may occupy, a multiple of 16 less Headroom's phase
	windows int    // those before this one may hold live frames
	free    []*Frame
	live    int
}

// NewPool returns a pool of at most frames live frames over an arena of size bytes, without windows.
func NewPool(frames, size int) *Pool { return NewPoolWithWindows(frames, size, 0) }

// NewPoolWithWindows returns a pool of at most frames live frames over an arena of size bytes and windows windows.
func NewPoolWithWindows(frames, size, windows int) *Pool {
	p := &Pool{arena: make([]byte, size+windows*windowStride), size: size, free: make([]*Frame, frames)}
	headers := make([]Frame, frames)
	for i := range headers {
		headers[i].pool = p
		p.free[i] = &headers[i]
	}
	return p
}

// Memory is where all frames of the pool are, for who tells the kernel before. It doesn't change.
func (p *Pool) Memory() []byte { return p.arena }

// Reserve returns n writable bytes preceded by before bytes for a header that the port reads together
// with the frame (before is at most Headroom), or nil when the arena or the frames are used up: the
// caller then ends its burst. The bytes are not taken until Commit; a second Reserve returns them again.
func (p *Pool) Reserve(before, n int) []byte {
	start := p.used + Headroom
	if len(p.free) == 0 || start+n > p.size {
		return nil
	}
	return p.arena[start-before : start+n]
}

// Commit turns the first n bytes (without the header) of what Reserve returned into a frame with zero
// Meta, which belongs to the caller until Release.
func (p *Pool) Commit(n int) *Frame {
	f := p.at(p.used+Headroom, n)
	p.used = (f.off + n + 15) &^ 15
	return f
}

// Windows says which windows are free, up to n: as many as count, from first on.
func (p *Pool) Windows(n int) (first, count int) {
	return p.windows, min(n, len(p.free), (len(p.arena)-p.size)/windowStride-p.windows)
}

// Window returns the MaxLen writable bytes of a free window, preceded by before bytes as with Reserve.
func (p *Pool) Window(i, before int) []byte {
	start := p.size + i*windowStride + Headroom
	return p.arena[start-before : start+MaxLen]
}

// CommitWindow is Commit for what Window returned. It takes the windows before that one, too.
func (p *Pool) CommitWindow(i, n int) *Frame {
	p.windows = i + 1
	return p.at(p.size+i*windowStride+Headroom, n)
}

func (p *Pool) at(off, n int) *Frame {
	f := p.take()
	f.off = off
	f.buf = p.arena[off : off+n : off+n]
	return f
}

// Live returns the number of frames handed out and not yet released: the pool's balance, zero at rest.
func (p *Pool) Live() int { return p.live }

func (p *Pool) take() *Frame {
	last := len(p.free) - 1
	if last < 0 {
		return nil
	}
	f := p.free[last]
	p.free = p.free[:last]
	f.Meta = Meta{}
	p.live++
	return f
}

func (p *Pool) release(f *Frame) {
	if f.buf == nil {
		panic(fmt.Sprintf("frame: released twice (in port %d)", f.In))
	}
	f.buf = nil
	p.free = append(p.free, f)
	if p.live--; p.live == 0 {
		p.used, p.windows = 0, 0
	}
}
