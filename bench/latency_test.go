package bench

import (
	"slices"
	"testing"
	"time"

	"tapyard/bench/seed"
)

// The definition itself: the least value that p per cent don't exceed, found by counting.
func TestPercentileIsTheNearestRank(t *testing.T) {
	rng := seed.Rand(t)
	for range 300 {
		values := make([]time.Duration, 1+rng.IntN(300))
		for i := range values {
			values[i] = time.Duration(rng.IntN(50))
		}
		slices.Sort(values)
		for _, p := range append([]float64{100}, curvePercentiles...) {
			want := values[len(values)-1]
			for _, v := range slices.Backward(values) {
				within := 0
				for _, other := range values {
					if other <= v {
						within++
					}
				}
				if float64(within)*100 >= p*float64(len(values)) {
					want = v
				}
			}
			if got := percentile(values, p); got != want {
				t.Fatalf("%g %% of %v: %d, want %d", p, values, got, want)
			}
		}
	}
	if got := percentile(nil, 50); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// A stall is held against every request that was due meanwhile, not only against the one that met it.
func TestAnswersCountFromWhenTheyWereDue(t *testing.T) {
	r := requester{spec: probeSpec{Every: time.Millisecond, Run: 7}}
	r.result.Sent = 3
	reply := func(run, number uint64) []byte {
		return append(stamp(run, number), make([]byte, requestLen-stampLen)...)
	}
	for number := range uint64(3) {
		r.answer(reply(7, number), 10*time.Millisecond)
	}
	r.answer(reply(8, 1), time.Second) // another run's
	r.answer(reply(7, 4), time.Second) // was never asked
	r.answer([]byte("short"), time.Second)
	if want := []time.Duration{10 * time.Millisecond, 9 * time.Millisecond, 8 * time.Millisecond}; !slices.Equal(r.result.RTT, want) || r.result.Foreign != 3 {
		t.Errorf("round trips %v and %d foreign, want %v and 3", r.result.RTT, r.result.Foreign, want)
	}
}

// The points of a curve never fall, and end before they would repeat the maximum.
func TestLatencySeries(t *testing.T) {
	rtts := make([]time.Duration, 1000)
	for i := range rtts {
		rtts[i] = time.Duration(999-i) * time.Microsecond
	}
	s := latencySeries("latency.x", "raw", rtts)
	last := s.Points[len(s.Points)-1]
	if s.Points[0] != [2]float64{0, 0} || last != [2]float64{99.5, 994} {
		t.Errorf("from %v to %v, want 0 %% to 99.5 %%, which is all that a thousand can tell", s.Points[0], last)
	}
}

// Requests through the C loop balance with the kernel's counters, beside a load and without; a search finds a rate.
func TestLatencyAndSearchThroughRaw(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds of traffic")
	}
	s := testSession(t, startRaw)
	sub := s.subjects[0]
	for _, load := range []int{0, 20_000} {
		var r *probeResult
		requireCount(t, func() (err error) {
			r, err = s.ask(t.Context(), sub, load, 300*time.Millisecond)
			return err
		})
		if r.Sent != 600 || len(r.RTT) != 600 || r.RTT[0] <= 0 {
			t.Errorf("beside %d frames/s: %d requests in 300 ms, %d answers, want 600 of both", load, r.Sent, len(r.RTT))
		}
	}
	f, err := s.nonDropRate(t.Context(), sub, scenario{flows: 100, sizes: imix}, 0.3)
	if err != nil {
		t.Fatal(err)
	}
	if a := f.account; f.lost > 0 || a.sink.Received != a.generator.Sent || a.generator.Refused > 0 || f.took < 1000 {
		t.Errorf("found %+v of %+v", *f, *a)
	}
	t.Logf("%.0f frames/s after %d trials", f.took, f.trials)
}
