package flow

import (
	"fmt"
	"net/netip"
	"testing"

	"tapyard/switch/wire"
)

const burst = 64

// filled returns a table of the default size with that many flows that both sides keep up, and the frames of the
// first ones, from their openers.
func filled(b testing.TB, flows, ones int) (*Table, []heard) {
	table, frames := New(DefaultCapacity, 2), make([]heard, 0, ones)
	h := talk{1, wire.ProtoUDP, netip.MustParseAddrPort("10.0.0.0:40000"), netip.MustParseAddrPort("10.244.1.4:53")}.heard(b, false, 0)
	for i := range flows {
		h.p.Src[1], h.p.Src[2], h.p.Src[3] = byte(i>>16), byte(i>>8), byte(i)
		back := h
		back.p.Src, back.p.Dst, back.p.SrcPort, back.p.DstPort = h.p.Dst, h.p.Src, h.p.DstPort, h.p.SrcPort
		if track(table, 100, nobody, h, back); i < ones {
			frames = append(frames, h)
		}
	}
	return table, frames
}

func perFrame(b *testing.B, frames int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(frames), "ns/frame")
}

// BenchmarkHit is what a frame costs whose flow is there: the key, the lookup, and nothing to write. The flows take
// turns frame by frame.
func BenchmarkHit(b *testing.B) {
	for _, c := range []struct{ active, live int }{{1, 1}, {1000, 1000}, {1000, 100_000}, {100_000, 100_000}} {
		b.Run(fmt.Sprintf("%dof%d", c.active, c.live), func(b *testing.B) {
			table, frames := filled(b, c.live, c.active)
			batch, at := NewBatch(burst), 0
			for b.Loop() {
				for range burst {
					h := &frames[at]
					batch.Add(h.vni, h.bytes, &h.p)
					if at++; at == len(frames) {
						at = 0
					}
				}
				table.Track(batch, 100e9, nobody)
			}
			perFrame(b, burst)
			if s := table.Stats(); s.Live != c.live || s.Created != uint64(c.live) {
				b.Fatalf("%+v", s)
			}
		})
	}
}

// BenchmarkMiss is what a frame costs that begins a flow: among 100,000 others, and in a full table, where it takes
// the place of one that was not answered.
func BenchmarkMiss(b *testing.B) {
	for name, flows := range map[string]int{"100000live": 100_000, "full": 0} {
		b.Run(name, func(b *testing.B) {
			table, frames := filled(b, max(flows, 1), 1)
			batch, h, n := NewBatch(burst), frames[0], uint32(0)
			for flows == 0 && table.Stats().Evicted < 50_000 {
				n++
				h.p.SrcPort, h.p.Src[0] = uint16(n), byte(n>>16)+100
				batch.Add(h.vni, h.bytes, &h.p)
				table.Track(batch, 100e9, nobody)
			}
			for b.Loop() {
				for range burst {
					n++
					h.p.SrcPort, h.p.Src[0] = uint16(n), byte(n>>16)+100
					batch.Add(h.vni, h.bytes, &h.p)
				}
				table.Track(batch, 100e9, Owner{1, 1 << 30})
				if flows > 0 && n%8192 < burst { // so that the load stays what it says
					b.StopTimer()
					table.DropOwner(1)
					b.StartTimer()
				}
			}
			perFrame(b, burst)
		})
	}
}

func TestTrackAllocatesNothing(t *testing.T) {
	table, frames := filled(t, 100, 100)
	batch, n := NewBatch(burst), uint16(0)
	if a := testing.AllocsPerRun(100, func() {
		for i := range burst / 2 {
			batch.Add(frames[i].vni, frames[i].bytes, &frames[i].p)
			h := &frames[99] // a new flow each time
			n++
			h.p.DstPort = n
			batch.Add(h.vni, h.bytes, &h.p)
		}
		table.Track(batch, 100e9, nobody)
	}); a != 0 {
		t.Errorf("%v allocations per burst", a)
	}
}
