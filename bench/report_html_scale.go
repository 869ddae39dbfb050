package bench

import (
	"fmt"
	"math"
)

// scale maps figures to places.
type scale struct {
	min, max float64
	from, to px
	warp     func(float64) float64 // nil is linear
}

// tick is a labelled place of an axis.
type tick struct {
	At, TextAt px // the line's; the baseline of a label beside it
	Label      string
}

func (s *scale) at(v float64) px {
	low, high := s.min, s.max
	if s.warp != nil {
		low, high, v = s.warp(low), s.warp(high), s.warp(v)
	}
	return s.from + px((v-low)/(high-low))*(s.to-s.from)
}

// logScale spans the figures, all above 0, with some air, and a factor of two at least.
func logScale(from, to px, figures []float64) *scale {
	low, high := extent(figures)
	if high < 2*low {
		middle := math.Sqrt(low * high)
		low, high = middle/math.Sqrt2, middle*math.Sqrt2
	}
	return &scale{min: low / 1.06, max: high * 1.06, from: from, to: to, warp: math.Log}
}

// logTicks are 1, 2 and 5 of each decade, the decades alone where those would be too many, or more where there is
// hardly one decade.
func (s *scale) logTicks() (ticks []tick) {
	steps := []float64{1, 2, 5}
	if math.Log10(s.max/s.min) > 3 {
		steps = steps[:1]
	}
	if s.max/s.min < 4 {
		steps = []float64{1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9}
	}
	for decade := math.Pow(10, math.Floor(math.Log10(s.min))); decade <= s.max; decade *= 10 {
		for _, step := range steps {
			if v := decade * step; v >= s.min && v <= s.max {
				ticks = append(ticks, s.tick(v, tickLabel(v)))
			}
		}
	}
	return ticks
}

// linearScale begins at 0.
func linearScale(from, to px, figures []float64) *scale {
	_, high := extent(figures)
	if high <= 0 {
		high = 1
	}
	return &scale{max: high * 1.04, from: from, to: to}
}

// linearTicks are about n, at multiples of 1, 2 or 5 times a power of ten.
func (s *scale) linearTicks(n int) (ticks []tick) {
	rough := s.max / float64(n)
	step := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{5, 2} {
		if step*m <= rough {
			step *= m
			break
		}
	}
	for i := 0; float64(i)*step <= s.max; i++ {
		v := float64(i) * step
		ticks = append(ticks, s.tick(v, tickLabel(v)))
	}
	return ticks
}

// nines stretches percentiles: each further nine takes as much room.
func nines(p float64) float64 { return -math.Log10(1 - p/100) }

func (s *scale) tick(v float64, label string) tick {
	at := s.at(v)
	return tick{At: at, TextAt: at + 4, Label: label} // half of the digits' height below
}

func tickLabel(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3g M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.3g k", v/1e3)
	}
	return fmt.Sprintf("%.4g", v)
}

func extent(figures []float64) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, v := range figures {
		low, high = min(low, v), max(high, v)
	}
	return low, high
}
