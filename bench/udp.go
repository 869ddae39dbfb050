package bench

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// imix is the simple IMIX, 7 : 4 : 1 of 64, 594 and 1,518 bytes, the last cut to what a pod's MTU lets through; the
// sizes are spread, so that every dozen frames has them all.
var imix = []int{64, 594, 64, 64, 594, 64, maxFrame, 64, 594, 64, 594, 64}

const imixName = "imix"

// udpSizes are a few of RFC 2544 section 9.1, the largest cut to the pods' MTU: a search takes half a minute, for each
// subject and number of flows.
var udpSizes = []string{"64", "512", strconv.Itoa(maxFrame), imixName}

// udpFlows are "one flow and many".
var udpFlows = []int{1, interleavedFlows}

// udpMetrics: the first is the rate, the others are of the trial that verified it.
var udpMetrics = []metric{
	{name: "", long: "non_drop_rate", unit: "frames/s"},
	{name: "throughput", long: "throughput", unit: "Gb/s of frames, FCS included"},
	{name: "switch_cpu", long: "frames_per_switch_cpu_second", unit: "frames per CPU second of the switch"},
}

// lossLoads are the shares of the non-drop rate at which the loss curve is measured.
var lossLoads = []float64{0.5, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2}

// UDPConfig says what `bench udp` offers.
type UDPConfig struct {
	Config
	Sizes []string // bytes on the wire, FCS included, or "imix"
	Flows []int
}

func udpCommand() *cobra.Command {
	var cfg UDPConfig
	cmd := benchmarkCommand("udp", "The rate of UDP frames without loss between two pods on one node, and the loss beyond it", func(ctx context.Context, progress io.Writer) (*Report, error) {
		cfg.Progress = progress
		return UDP(ctx, cfg)
	})
	cmd.Long = fmt.Sprintf(`Searches the non-drop rate by bisection, after RFC 2544: a trial offers frames at a fixed rate for half a second and is
lossless when every frame arrived; what the search finds is tried once more for a second. Then the loss is measured at
half that rate to twice that rate.

Frames have %d to %d bytes on the wire, their check sequence included: larger ones, such as RFC 2544's 1518, don't fit a
pod's MTU of %d, which leaves room for VXLAN on Ethernet. "imix" is 64, 594 and %[2]d bytes in the ratio 7 : 4 : 1.`, minFrame, maxFrame, podMTU)
	cmd.Flags().StringSliceVar(&cfg.Peers, "peers", []string{"raw"}, "what to measure beside the switch: "+strings.Join(slices.Sorted(maps.Keys(sameNodePeers)), ", "))
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", 1, "rounds, in each of which every subject's rate is searched once")
	cmd.Flags().StringSliceVar(&cfg.Sizes, "sizes", udpSizes, "of frames")
	cmd.Flags().IntSliceVar(&cfg.Flows, "flows", udpFlows, "how many flows take turns, frame by frame")
	return cmd
}

// UDP measures the non-drop rate and the loss curve for every size and number of flows.
func UDP(ctx context.Context, cfg UDPConfig) (*Report, error) {
	scenarios, err := cfg.scenarios()
	if err != nil {
		return nil, err
	}
	return runBenchmark(ctx, cfg.Config, func(ctx context.Context, s *session) ([]Row, error) {
		return s.sameNode(ctx, cfg.Peers, func(ctx context.Context) (rows []Row, err error) {
			for _, sc := range scenarios {
				r, err := s.udp(ctx, sc)
				if err != nil {
					return nil, err
				}
				rows = append(rows, r...)
			}
			return rows, nil
		})
	})
}

// scenarios are one per size and number of flows.
func (c *UDPConfig) scenarios() (all []scenario, err error) {
	for _, size := range c.Sizes {
		sizes := imix
		if size != imixName {
			n, err := strconv.Atoi(size)
			if err != nil || n < minFrame || n > maxFrame {
				return nil, fmt.Errorf("frame size %q: want %d to %d, which is what the pods' MTU of %d lets through, or %s", size, minFrame, maxFrame, podMTU, imixName)
			}
			sizes = []int{n}
		}
		for _, flows := range c.Flows {
			if flows < 1 || flows > maxFlows {
				return nil, fmt.Errorf("%d flows: want 1 to %d, a source port for each", flows, maxFlows)
			}
			all = append(all, scenario{name: fmt.Sprintf("%s.flows%d", size, flows), flows: flows, sizes: sizes})
		}
	}
	return all, nil
}

// udp measures one scenario: the non-drop rate of every subject, then its loss curve.
func (s *session) udp(ctx context.Context, sc scenario) ([]Row, error) {
	base := "udp.samenode." + sc.name
	bits := 8 * meanFrame(sc.sizes)
	best := map[string]float64{}
	rows, err := s.interleave(ctx, base, ofFrames(udpMetrics, sc.sizes), func(ctx context.Context, sub subject) (values, error) {
		f, err := s.nonDropRate(ctx, sub, sc, searchPrecision)
		if err != nil {
			return nil, err
		}
		if f.limit {
			s.note("%s: the generator was the limit of %s, which can do more", base, sub.name())
		}
		best[sub.name()] = f.took
		cpu := float64(f.account.sink.Received) / f.account.cpu.switchSeconds()
		return values{f.took, f.took * bits / 1e9, cpu}, nil
	})
	if err != nil {
		return nil, err
	}
	for _, sub := range s.subjects {
		line, err := s.lossCurve(ctx, sub, sc, best[sub.name()])
		if err != nil {
			return nil, fmt.Errorf("%s: loss curve of %s: %w", base, sub.name(), err)
		}
		line.Name = base
		s.series = append(s.series, line)
	}
	return rows, nil
}

// nonDropRate searches from what arrives when everything is offered at once.
func (s *session) nonDropRate(ctx context.Context, sub subject, sc scenario, precision float64) (*found, error) {
	sc.rate = 0
	a, err := s.offer(ctx, sub, sc, searchTrial)
	if err != nil {
		return nil, err
	}
	if a.sink.Received == 0 {
		return nil, a.check()
	}
	return searchRate(float64(a.sink.Received)/a.sink.Took.Seconds(), precision, s.try(ctx, sub, sc))
}

// lossCurve offers shares of the non-drop rate. A point whose frames don't balance is left out, and it ends where the
// generator does.
func (s *session) lossCurve(ctx context.Context, sub subject, sc scenario, rate float64) (Series, error) {
	line := Series{Subject: sub.name(), X: "offered, frames/s", Y: "lost, %"}
	try := s.try(ctx, sub, sc)
	for _, share := range lossLoads {
		t, err := try(share*rate, searchTrial)
		if err != nil {
			return line, err
		}
		if t.limited {
			break
		}
		if err := t.account.check(); err != nil {
			s.say("loss curve at %s frames/s: %v", short(t.rate), err)
			continue
		}
		line.Points = append(line.Points, [2]float64{t.rate, 100 * t.lost})
	}
	return line, nil
}
