// Package frame holds frames in memory: a Frame is a window into a Pool's buffer with the metadata that
// travels beside the bytes (port, VNI, offloads), a Burst is what one pass of a worker handles, and a
// Segmenter cuts a super-frame into the frames that it stands for.
package frame

import "tapyard/switch/wire"

// Meta is what a frame's bytes don't say. It is filled by the port that received the frame and completed
// by the act stage from the Adjacency.
type Meta struct {
	In   uint16 // port.ID that the frame came from
	VNI  uint32 // overlay network, 24 bits
	Peer uint32 // VTEP index: where the frame came from (rx of a tunnel) or goes to (tx into one)
	Hash uint32 // flow hash; equal for all frames of a flow and direction

	// The virtio-net header, except flags that mean nothing between ports. Offsets count from the first
	// byte of the frame, sizes are in bytes.
	GSOType    uint8 // wire.GSONone, GSOTCPv4, GSOTCPv6, GSOUDPL4, with wire.GSOECN added
	NeedsCsum  bool  // the checksum at CsumStart+CsumOffset holds only the pseudo-header's sum
	HdrLen     uint16
	GSOSize    uint16
	CsumStart  uint16
	CsumOffset uint16
}

// IsSuper says that the frame stands for several on the wire.
func (m *Meta) IsSuper() bool { return m.GSOType&^wire.GSOECN != wire.GSONone }

// SegmentLen returns the length in bytes, without the Ethernet header, of the largest packet that the
// frame puts on the wire; n is the frame's length.
func (m *Meta) SegmentLen(n int) int {
	if m.IsSuper() {
		n = min(n, int(m.HdrLen)+int(m.GSOSize))
	}
	return n - wire.EthernetLen
}

// WireFrames returns how many frames of the wire a frame of n bytes stands for: 1, or the number of
// segments of a super-frame whose metadata Parse has checked.
func (m *Meta) WireFrames(n int) int {
	if !m.IsSuper() || m.GSOSize == 0 || n <= int(m.HdrLen) {
		return 1
	}
	return (n - int(m.HdrLen) + int(m.GSOSize) - 1) / int(m.GSOSize)
}

// Frame is a window into its Pool's arena. It belongs to one worker at a time, which is the only one to
// touch it; a clone shares the bytes, which are then read-only for both.
type Frame struct {
	Meta
	buf  []byte // from the frame's first byte to its last; cap ends there too
	off  int    // of buf[0] in the arena
	pool *Pool
}

// Bytes returns the frame from its Ethernet header on. The slice is valid until Release.
func (f *Frame) Bytes() []byte { return f.buf }

// Len returns the frame's length in bytes.
func (f *Frame) Len() int { return len(f.buf) }

// Wire returns how many wire frames the frame stands for.
func (f *Frame) Wire() int { return f.WireFrames(len(f.buf)) }

// WireBytes returns the bytes of all those wire frames.
func (f *Frame) WireBytes() int { return len(f.buf) + (f.Wire()-1)*int(f.HdrLen) }

// WithHeadroom returns the frame preceded by n bytes of its headroom, for a port that writes a header
// before the frame in one system call. n is at most Headroom. Clones share the headroom, so what is
// written there is valid until the next frame is prepared only.
func (f *Frame) WithHeadroom(n int) []byte {
	return f.pool.arena[f.off-n : f.off+len(f.buf)]
}

// Release gives the frame back to its pool. The frame and its bytes must not be used afterwards.
func (f *Frame) Release() { f.pool.release(f) }

// Clone returns a second Frame over the same bytes, or nil when the pool has none left. Both are
// read-only from then on.
func (f *Frame) Clone() *Frame {
	c := f.pool.take()
	if c != nil {
		c.Meta, c.buf, c.off = f.Meta, f.buf, f.off
	}
	return c
}

// BurstSize is how many frames one pass of a worker handles at most. 64 is where the share of the fixed
// cost of a pass (one epoll_wait, one Snapshot load, one quiescent point: about 1 µs) falls under 20 ns a
// frame, while 64 small frames with their headroom (64 × 128 B = 8 KiB) still fit an L1 cache.
const BurstSize = 64

// Burst is an ordered list of frames. The zero value is an empty one.
type Burst struct {
	frames [BurstSize]*Frame
	n      int
}

// Append adds f at the end; the burst must not be full.
func (b *Burst) Append(f *Frame) {
	b.frames[b.n] = f
	b.n++
}

// Frames returns the frames in order. The slice is valid until the burst changes.
func (b *Burst) Frames() []*Frame { return b.frames[:b.n] }

// Len returns the number of frames.
func (b *Burst) Len() int { return b.n }

// Full says that no frame more fits.
func (b *Burst) Full() bool { return b.n == BurstSize }

// Truncate shortens the burst to its first n frames, without releasing the others.
func (b *Burst) Truncate(n int) { b.n = n }

// Reset empties the burst without releasing its frames.
func (b *Burst) Reset() { b.n = 0 }

// Release gives all frames back to their pools and empties the burst.
func (b *Burst) Release() {
	for _, f := range b.Frames() {
		f.Release()
	}
	b.n = 0
}
