package frame_test

import (
	"bytes"
	"testing"
	"unsafe"

	"tapyard/bench/seed"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// Random takes, clones and releases against what the pool must guarantee: live frames never overlap, each
// keeps its bytes and has its headroom, and the balance is right.
func TestPoolAgainstModel(t *testing.T) {
	r := seed.Rand(t)
	const frames, arena = 50, 20000
	p := frame.NewPool(frames, arena)
	type held struct {
		f    *frame.Frame
		want []byte
	}
	var live []held
	for range 5000 {
		switch n := r.IntN(900); {
		case n < 300 && len(live) > 0:
			i := r.IntN(len(live))
			live[i].f.Release()
			live = append(live[:i], live[i+1:]...)
		case n < 400 && len(live) > 0:
			from := live[r.IntN(len(live))]
			if c := from.f.Clone(); c != nil {
				live = append(live, held{c, from.want})
			} else if len(live) != frames {
				t.Fatalf("no clone with %d of %d frames live", len(live), frames)
			}
		default:
			buf := p.Reserve(frame.Headroom, n+r.IntN(60)) // a port reserves more than turns out to come
			if buf == nil {
				for _, h := range live {
					h.f.Release()
				}
				live = live[:0]
				continue
			}
			want := randomBytes(r, n)
			copy(buf[frame.Headroom:], want)
			live = append(live, held{p.Commit(n), want})
		}
		for _, h := range live {
			if !bytes.Equal(h.f.Bytes(), h.want) || !bytes.Equal(h.f.WithHeadroom(frame.Headroom)[frame.Headroom:], h.want) {
				t.Fatalf("a frame of %d bytes has changed", len(h.want))
			}
			clear(h.f.WithHeadroom(frame.Headroom)[:frame.Headroom]) // must hit no other frame
		}
		if p.Live() != len(live) {
			t.Fatalf("Live %d, want %d", p.Live(), len(live))
		}
	}
}

// Windows take frames of MaxLen beside what the arena holds, none overlaps another, and all are free again when the
// last frame is gone. Those that got no frame in between are taken with the later ones.
func TestWindows(t *testing.T) {
	const windows = 5
	p := frame.NewPoolWithWindows(10, frame.Headroom+100, windows)
	for range 3 {
		small := commit(t, p, bytes.Repeat([]byte{0xff}, 100))
		first, n := p.Windows(3)
		if first != 0 || n != 3 {
			t.Fatalf("windows from %d on, %d of them; want 3 from 0 on", first, n)
		}
		frames := []*frame.Frame{small}
		fill := func(i, n int) {
			w := p.Window(i, frame.Headroom)
			if len(w) != frame.Headroom+frame.MaxLen {
				t.Fatalf("a window of %d bytes", len(w))
			}
			for at := range w {
				w[at] = byte(i)
			}
			frames = append(frames, p.CommitWindow(i, n))
		}
		fill(0, frame.MaxLen)
		fill(2, 60)
		if first, n := p.Windows(64); first != 3 || n != 2 {
			t.Errorf("windows from %d on, %d of them; want 2 from 3 on", first, n)
		}
		fill(3, 1)
		fill(4, frame.MaxLen)
		if _, n := p.Windows(1); n != 0 {
			t.Error("a sixth window")
		}
		for i, want := range []struct {
			n    int
			fill byte
		}{{100, 0xff}, {frame.MaxLen, 0}, {60, 2}, {1, 3}, {frame.MaxLen, 4}} {
			if !bytes.Equal(frames[i].Bytes(), bytes.Repeat([]byte{want.fill}, want.n)) {
				t.Errorf("frame %d of %d bytes has changed", i, want.n)
			}
		}
		if p.Reserve(0, 1) != nil {
			t.Error("the arena has grown into the windows")
		}
		for _, f := range frames {
			f.Release()
		}
	}
	few := frame.NewPoolWithWindows(2, 100, windows)
	if _, n := few.Windows(4); n != 2 {
		t.Errorf("%d windows for 2 frames", n)
	}
}

// A burst's frames lie one behind the other with their headroom only, and the arena starts anew when the
// last is gone.
func TestArenaIsContiguousAndReused(t *testing.T) {
	p := frame.NewPool(4, 1000)
	first := commit(t, p, make([]byte, 64))
	start := address(first.Bytes())
	second := commit(t, p, make([]byte, 60))
	third := commit(t, p, make([]byte, 1))
	if d := address(second.Bytes()) - start; d != 64+frame.Headroom {
		t.Errorf("the second frame lies %d bytes behind the first of 64, want %d", d, 64+frame.Headroom)
	}
	if d := address(third.Bytes()) - address(second.Bytes()); d != 64+frame.Headroom {
		t.Errorf("the third frame lies %d bytes behind the second of 60, want %d", d, 64+frame.Headroom)
	}
	first.Release()
	third.Release()
	if again := p.Reserve(0, 1); address(again) == start {
		t.Error("the arena is used again while a frame is live")
	}
	second.Release()
	if again := p.Reserve(0, 1); address(again) != start {
		t.Error("the arena doesn't start anew after the last release")
	}
}

func TestReserveEnds(t *testing.T) {
	p := frame.NewPool(2, 1000)
	if p.Reserve(0, 1000) != nil {
		t.Error("an arena of 1000 bytes has no room for 1000 and headroom")
	}
	if len(p.Reserve(frame.Headroom, 1000-frame.Headroom)) != 1000 {
		t.Error("the whole arena must be one frame's if nothing else is live")
	}
	commit(t, p, []byte{1})
	f := commit(t, p, []byte{2})
	if p.Reserve(0, 1) != nil || f.Clone() != nil {
		t.Error("two frames exist, both are live, and there is a third")
	}
	f.Release()
	if p.Reserve(0, 1) == nil {
		t.Error("a released frame isn't available")
	}
}

func TestCommitClearsMeta(t *testing.T) {
	p := frame.NewPool(1, 1000)
	f := commit(t, p, []byte{1})
	f.Meta = frame.Meta{In: 1, VNI: 2, Peer: 3, Hash: 4, GSOType: wire.GSOUDPL4, NeedsCsum: true}
	f.Release()
	if f := commit(t, p, []byte{1}); f.Meta != (frame.Meta{}) {
		t.Errorf("a new frame has the metadata of an old one: %+v", f.Meta)
	}
}

func TestReleasingTwicePanics(t *testing.T) {
	p := frame.NewPool(1, 1000)
	f := commit(t, p, []byte{1})
	f.Release()
	defer func() {
		if recover() == nil {
			t.Error("no panic: the frame would be handed out twice")
		}
	}()
	f.Release()
}

func TestBurst(t *testing.T) {
	p := frame.NewPool(frame.BurstSize, frame.DefaultArena)
	var b frame.Burst
	for i := range frame.BurstSize {
		if b.Full() {
			t.Fatalf("full with %d frames", i)
		}
		b.Append(commit(t, p, []byte{byte(i)}))
	}
	for i, f := range b.Frames() {
		if f.Bytes()[0] != byte(i) {
			t.Errorf("frame %d is number %d", f.Bytes()[0], i)
		}
	}
	if !b.Full() || p.Live() != frame.BurstSize {
		t.Errorf("full %t with %d frames live", b.Full(), p.Live())
	}
	if b.Release(); b.Len() != 0 || p.Live() != 0 {
		t.Errorf("after Release: %d frames, %d live", b.Len(), p.Live())
	}
}

// The MTU check looks at what a super-frame becomes.
func TestSegmentLenAgainstSegments(t *testing.T) {
	r := seed.Rand(t)
	p := frame.NewPool(1, frame.DefaultArena)
	for range 50 {
		for _, kind := range kinds {
			f := randomSizes(r, kind).build(t, r, p)
			longest := 0
			for _, s := range segments(t, f) {
				longest = max(longest, len(s))
			}
			if got := f.SegmentLen(f.Len()); got != longest-wire.EthernetLen {
				t.Fatalf("SegmentLen %d, the longest segment has %d bytes behind Ethernet", got, longest-wire.EthernetLen)
			}
			f.Release()
		}
	}
}
