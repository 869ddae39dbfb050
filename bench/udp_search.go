package bench

import (
	"context"
	"fmt"
	"time"
)

// The search for the highest rate at which nothing is lost, after RFC 2544 section 26.1: by bisection, and what it
// finds is tried once more for longer. RFC 2544 wants trials of 60 s; one of half a second sees the queue of 1000
// frames overflow hundreds of times over, and lets the subjects take turns before the machine changes its mood.
const (
	searchTrial     = 500 * time.Millisecond
	searchPrecision = 0.02
	searchTrials    = 24  // at most: doubling to a million times the guess, or bisecting to it, fits
	searchGrowth    = 1.5 // of the rate while nothing is lost
)

// trial is what became of one rate.
type trial struct {
	rate    float64 // offered, frames per second
	lost    float64 // share of the frames that were due: 0 is none at all
	limited bool    // the generator did not reach the rate, and nothing was refused: the subject could take more
	took    float64 // frames per second that arrived
	account *account
}

// tryRate offers a rate for the time given.
type tryRate func(rate float64, d time.Duration) (*trial, error)

// found is the result of a search.
type found struct {
	*trial      // the verified one
	trials int  // that it took
	limit  bool // the generator's, not the subject's
}

// searchRate looks for the highest rate without loss, to a relative precision, beginning at a guess.
func searchRate(guess, precision float64, try tryRate) (*found, error) {
	s := search{precision: precision, try: try}
	if err := s.narrow(guess); err != nil {
		return nil, err
	}
	best, err := s.verify()
	if err != nil {
		return nil, err
	}
	return &found{trial: best, trials: s.trials, limit: s.limit}, nil
}

// search is between low, where nothing was lost, and high, where something was; 0 is unknown.
type search struct {
	precision float64
	try       tryRate
	low, high float64
	limit     bool
	trials    int
}

// narrow moves low and high together.
func (s *search) narrow(rate float64) error {
	for s.trials < searchTrials && !s.done() {
		t, err := s.attempt(rate, searchTrial)
		switch {
		case err != nil:
			return err
		case t.lost > 0:
			s.high = rate
		case t.limited:
			s.low, s.limit = t.took, true
			return nil
		default:
			s.low = rate
		}
		rate = s.next()
	}
	return nil
}

func (s *search) done() bool { return s.high > 0 && s.high-s.low <= s.precision*s.high }

func (s *search) next() float64 {
	if s.high == 0 {
		return s.low * searchGrowth
	}
	return (s.low + s.high) / 2 // with low 0, a half
}

// attempt tries a rate, and again when something was lost: one stall of the machine is no limit of the subject's.
func (s *search) attempt(rate float64, d time.Duration) (*trial, error) {
	for again := false; ; again = true {
		s.trials++
		t, err := s.try(rate, d)
		if err != nil {
			return nil, fmt.Errorf("%.0f frames/s: %w", rate, err)
		}
		if t.lost == 0 || again {
			return t, nil
		}
	}
}

// verify tries what narrow has found for twice the time, and lower rates as long as something is lost; its steps double,
// so that a machine that got busy meanwhile costs precision rather than the search.
func (s *search) verify() (*trial, error) {
	step := s.precision
	for rate := s.low; rate > 0 && s.trials < 2*searchTrials; rate, step = rate*(1-step), min(2*step, 0.5) {
		t, err := s.attempt(rate, 2*searchTrial)
		if err != nil {
			return nil, err
		}
		if t.lost == 0 {
			return t, nil
		}
	}
	return nil, fmt.Errorf("no rate without loss was found in %d trials, the last one above %.0f frames/s", s.trials, s.low)
}

// try makes trials of a subject with frames as the scenario says.
func (s *session) try(ctx context.Context, sub subject, sc scenario) tryRate {
	return func(rate float64, d time.Duration) (*trial, error) {
		sc.rate = max(int(rate), 1)
		a, err := s.offer(ctx, sub, sc, d)
		if err != nil {
			return nil, err
		}
		return newTrial(a, sc.rate), nil
	}
}

// generatorShare is how much of its rate a generator reaches that isn't the limit; the rest is its last batch and
// the time to wake up.
const generatorShare = 0.98

func newTrial(a *account, rate int) *trial {
	due := float64(rate) * a.generator.Took.Seconds()
	t := &trial{rate: float64(rate), account: a}
	if a.sink.Took > 0 {
		t.took = float64(a.sink.Received) / a.generator.Took.Seconds()
	}
	switch {
	case a.generator.Refused > 0: // those frames were due and found the device full
		t.lost = max(1-float64(a.sink.Received)/due, 1/due)
	case a.sink.Received < a.generator.Sent:
		t.lost = 1 - float64(a.sink.Received)/float64(a.generator.Sent)
	}
	t.limited = a.generator.Refused == 0 && float64(a.generator.Sent) < generatorShare*due
	return t
}
