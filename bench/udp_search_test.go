package bench

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"tapyard/bench/seed"
)

// lossyDevice carries so many frames a second and loses the rest; now and then it loses one of any rate, as a machine
// does that others use too. Its generator reaches no more than most; 0 is any rate.
type lossyDevice struct {
	capacity, most, stalls float64
	rng                    *rand.Rand
	trials                 int
}

func (l *lossyDevice) try(rate float64, _ time.Duration) (*trial, error) {
	l.trials++
	t := &trial{rate: rate, took: rate}
	if l.most > 0 && rate > l.most {
		t.took, t.limited = l.most, true
	}
	switch {
	case t.took > l.capacity:
		t.lost, t.took, t.limited = 1-l.capacity/t.took, l.capacity, false
	case l.rng.Float64() < l.stalls:
		t.lost, t.limited = 1e-6, false
	}
	return t, nil
}

func TestSearchFindsCapacity(t *testing.T) {
	rng := seed.Rand(t)
	for range 2000 {
		device := &lossyDevice{capacity: 100 + 1e7*rng.Float64(), rng: rng}
		guess := device.capacity * (0.1 + 3*rng.Float64())
		got, err := searchRate(guess, searchPrecision, device.try)
		if err != nil {
			t.Fatalf("capacity %.0f, guess %.0f: %v", device.capacity, guess, err)
		}
		if got.took > device.capacity || got.took < (1-2*searchPrecision)*device.capacity || got.limit || got.lost > 0 {
			t.Fatalf("capacity %.0f, guess %.0f: found %.0f, lost %g, limited by the generator %v", device.capacity, guess, got.took, got.lost, got.limit)
		}
		if got.trials != device.trials || device.trials > 2*searchTrials {
			t.Fatalf("capacity %.0f, guess %.0f: %d trials, said to be %d", device.capacity, guess, device.trials, got.trials)
		}
	}
}

// A stall in one trial of twenty costs some precision, not the search.
func TestSearchOutlivesStalls(t *testing.T) {
	rng := seed.Rand(t)
	low := 0
	const searches = 500
	for range searches {
		device := &lossyDevice{capacity: 1e6, stalls: 0.05, rng: rng}
		got, err := searchRate(8e5, searchPrecision, device.try)
		if err != nil {
			t.Fatal(err)
		}
		if got.took > device.capacity || got.lost > 0 {
			t.Fatalf("found %.0f of %.0f with loss %g", got.took, device.capacity, got.lost)
		}
		if got.took < 0.95*device.capacity {
			low++
		}
	}
	// Two stalls in a row are 1 in 400, and a search has about ten rates to try: 1 in 40 searches.
	if low > searches/10 {
		t.Errorf("%d of %d searches ended 5 %% below", low, searches)
	}
}

func TestSearchNamesTheGeneratorsLimit(t *testing.T) {
	device := &lossyDevice{capacity: 1e6, most: 7e5, rng: rand.New(rand.NewPCG(1, 1))}
	got, err := searchRate(5e5, searchPrecision, device.try)
	if err != nil || !got.limit || got.took != device.most {
		t.Errorf("found %+v (%v), want the generator's %g", got, err, device.most)
	}
}

// A device that loses at every rate, and one that fails, end the search.
func TestSearchEnds(t *testing.T) {
	broken := &lossyDevice{capacity: 0, rng: rand.New(rand.NewPCG(1, 1))}
	if got, err := searchRate(1e6, searchPrecision, broken.try); err == nil || broken.trials > 2*searchTrials {
		t.Errorf("found %+v after %d trials", got, broken.trials)
	}
	gone := errors.New("gone")
	if _, err := searchRate(1e6, searchPrecision, func(float64, time.Duration) (*trial, error) { return nil, gone }); !errors.Is(err, gone) {
		t.Errorf("error %v, want that of the trial", err)
	}
}

// The last frames of a trial that found the device full were due and not sent: they are lost too.
func TestTrialCountsRefused(t *testing.T) {
	counts := func(sent, received, refused uint64) *account {
		return &account{generator: generatorResult{Sent: sent, Refused: refused, Took: time.Second}, sink: sinkResult{Received: received, Took: time.Second}}
	}
	for _, c := range []struct {
		name    string
		account *account
		lost    float64
		limited bool
	}{
		{"all", counts(1000, 1000, 0), 0, false},
		{"one lost", counts(1000, 999, 0), 0.001, false},
		{"the device was full once, nothing else", counts(1000, 1000, 1), 0.001, false},
		{"a tenth did not fit", counts(900, 900, 50), 0.1, false},
		{"the generator was slow", counts(900, 900, 0), 0, true},
	} {
		if got := newTrial(c.account, 1000); got.lost < c.lost-1e-9 || got.lost > c.lost+1e-9 || got.limited != c.limited {
			t.Errorf("%s: lost %g, limited %v; want %g, %v", c.name, got.lost, got.limited, c.lost, c.limited)
		}
	}
}

func TestUDPScenarios(t *testing.T) {
	cfg := UDPConfig{Sizes: []string{"64", "1468", "imix"}, Flows: []int{1, 1000}}
	all, err := cfg.scenarios()
	if err != nil || len(all) != 6 {
		t.Fatalf("%d scenarios (%v), want 6", len(all), err)
	}
	count := map[int]int{}
	for _, size := range all[5].sizes {
		count[size]++
	}
	if all[5].name != "imix.flows1000" || count[64] != 7 || count[594] != 4 || count[maxFrame] != 1 {
		t.Errorf("%s: %v, want 7 : 4 : 1", all[5].name, count)
	}
	for _, bad := range []UDPConfig{{Sizes: []string{"1518"}, Flows: []int{1}}, {Sizes: []string{"63"}, Flows: []int{1}}, {Sizes: []string{"x"}, Flows: []int{1}}, {Sizes: []string{"64"}, Flows: []int{0}}, {Sizes: []string{"64"}, Flows: []int{60_000}}} {
		if _, err := bad.scenarios(); err == nil {
			t.Errorf("sizes %q with flows %v were accepted", bad.Sizes, bad.Flows)
		}
	}
}
