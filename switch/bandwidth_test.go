package vswitch

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tapyard/bench/seed"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// bucketModel is a token bucket as the textbooks have it: bits, filled by the time that passes.
type bucketModel struct {
	rate, burst, tokens float64
	last                int64
}

func (b *bucketModel) admit(now int64, sizes []int) (n int) {
	b.tokens = min(b.burst, b.tokens+float64(now-b.last)/1e9*b.rate)
	b.last = now
	for ; n < len(sizes) && b.tokens > 0; n++ {
		b.tokens -= 8 * float64(sizes[n])
	}
	return n
}

// metered makes frames of the sizes, in bytes.
func metered(pool *frame.Pool, sizes []int) (frames []*frame.Frame) {
	for _, size := range sizes {
		pool.Reserve(0, size)
		frames = append(frames, pool.Commit(size))
	}
	return frames
}

// The meter is the textbook's bucket. Rates are such that a byte takes whole nanoseconds, so that both calculate
// exactly.
func TestMeterAgainstModel(t *testing.T) {
	rng, pool := seed.Rand(t), frame.NewPool(frame.BurstSize, frame.DefaultArena)
	for _, perByte := range []int{1, 8, 80, 800, 8000} {
		rate := uint64(8e9) / uint64(perByte)
		burst := 8 * uint64(1+rng.IntN(100000))
		now := int64(1700000000_000000000)
		m, model := newMeter(Rate{rate, burst}), bucketModel{float64(rate), float64(burst), float64(burst), now}
		var passed, refused int
		for step := range 3000 {
			sizes := make([]int, 1+rng.IntN(frame.BurstSize))
			for i := range sizes {
				sizes[i] = 60 + rng.IntN(1455)
			}
			frames := metered(pool, sizes)
			got, want := m.admit(now, frames), model.admit(now, sizes)
			for _, f := range frames {
				f.Release()
			}
			if got != want {
				t.Fatalf("%d ns a byte, step %d: %d of %d frames, the model lets %d pass", perByte, step, got, len(sizes), want)
			}
			passed, refused = passed+got, refused+len(sizes)-got
			now += int64(rng.IntN(2 * perByte * 32 * 780)) // on average, half of what the burst would need
		}
		if passed == 0 || refused == 0 {
			t.Errorf("%d ns a byte: %d frames passed, %d refused: want both", perByte, passed, refused)
		}
	}
}

// Super-frames count what they put on the wire, and one longer than the burst passes.
func TestMeterCountsTheWire(t *testing.T) {
	pool := frame.NewPool(frame.BurstSize, frame.DefaultArena)
	f := metered(pool, []int{54 + 10*1000})[0]
	f.GSOType, f.GSOSize, f.HdrLen = wire.GSOTCPv4, 1000, 54
	if want := 10 * 1054; f.WireBytes() != want {
		t.Fatalf("%d bytes, want %d", f.WireBytes(), want)
	}
	m := newMeter(Rate{Bits: 8e9, Burst: 8}) // a nanosecond a byte
	const start = int64(1700000000_000000000)
	for _, c := range []struct {
		at   int64
		want int
	}{{0, 1}, {0, 0}, {10*1054 - 1, 0}, {10 * 1054, 1}} {
		if got := m.admit(start+c.at, []*frame.Frame{f}); got != c.want {
			t.Errorf("after %d ns: %d, want %d", c.at, got, c.want)
		}
	}
	// A clock that is set back a day doesn't cut the pod off for one.
	if m.admit(start-int64(24*time.Hour), []*frame.Frame{f}) != 1 {
		t.Error("nothing passes after the clock was set back")
	}
}

// Workers that send to one port together don't exceed its rate.
func TestMeterIsShared(t *testing.T) {
	m := newMeter(Rate{Bits: 8e9, Burst: 8 * 100000})
	var passed atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			f := metered(frame.NewPool(1, frame.DefaultArena), []int{100})
			for range 1000 {
				passed.Add(int64(m.admit(1700000000_000000000, f)))
			}
		})
	}
	all.Wait()
	if passed.Load() != 1000 {
		t.Errorf("%d frames of 100 bytes passed, the burst is for 1000", passed.Load())
	}
}

// Both directions of a port are held to their rates, floods and fragments included, with the drops where they
// belong; ports without limits are not touched.
func TestBandwidthOfAPort(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.must(r.sw.Detach(t.Context(), r.ids[r.podB]))
	id, err := r.sw.Attach(r.podB, PortConfig{Role: RoleAccess, VNI: testVNI, Sent: Rate{8, 8 * 300}, Received: Rate{8, 8 * 500}})
	r.must(err)
	r.ids[r.podB] = id
	r.must(r.sw.AddStation(testVNI, id, macB, nil))
	r.route()
	const size = 14 + 20 + 8 + 58 // 100 bytes
	text := string(make([]byte, 58))
	to, back := udp(t, macA, macB, a4, b4, 64, text), udp(t, macB, macA, b4, a4, 64, text)
	if len(to) != size {
		t.Fatalf("%d bytes", len(to))
	}
	var toB, toA []porttest.Frame
	for range 10 {
		toB, toA = append(toB, plain(to)), append(toA, plain(back))
	}
	r.run(r.podA, toB...)
	r.run(r.podB, toA...)
	if a, b := len(r.podA.Sent()), len(r.podB.Sent()); a != 3 || b != 5 {
		t.Errorf("pod a got %d frames, pod b %d; want 3 and 5", a, b)
	}
	if got := r.drops(r.podB); got["bandwidth_egress"] != 7 || got["bandwidth_ingress"] != 5 || len(r.drops(r.podA)) != 0 {
		t.Errorf("drops of b %v, of a %v", got, r.drops(r.podA))
	}
}
