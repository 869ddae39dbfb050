package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	hostileTime = 2 * time.Second

	// hostileLead is how long an attack has lasted when the stream and the questions begin: a ring of 1000
	// frames and the switch's queues are full by then.
	hostileLead = 200 * time.Millisecond

	// askEvery makes 20 questions a second; four targets in turn leave each answer 200 ms.
	askEvery = 50 * time.Millisecond

	// hostilePrefix6 is the pods' other subnet, for neighbour discovery.
	hostilePrefix6 = "fd00:10:244:1::/64"

	// voidDevice is a TAP in the attacker's pod like its other one, which nobody reads: what is sent there costs
	// its sender the same, from the full ring on, and the switch nothing.
	voidDevice = "void0"
)

// HostileConfig says which attacks are measured, and how often.
type HostileConfig struct {
	Config           // Peers are ignored
	Attacks []string // by name; none is all
}

func hostileCommand() *cobra.Command {
	var cfg HostileConfig
	cmd := benchmarkCommand("hostile", "What a pod that attacks at full rate costs its neighbours", func(ctx context.Context, progress io.Writer) (*Report, error) {
		cfg.Progress = progress
		return Hostile(ctx, cfg)
	})
	cmd.Flags().StringSliceVar(&cfg.Attacks, "attacks", attackNames(), "what the hostile pod does")
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", 9, "pairs of runs of each attack")
	return cmd
}

// Hostile measures what a hostile pod costs a TCP stream between two neighbours, and a third one that asks
// for link-layer addresses. Each attack runs twice in turn: into a device that nobody reads, which
// costs the machine the making of the frames, and into the switch. The ratio of the two streams is what the
// switch lets the attack cost.
func Hostile(ctx context.Context, cfg HostileConfig) (report *Report, err error) {
	for _, name := range cfg.Attacks {
		if _, err := attackNamed(name); err != nil {
			return nil, err
		}
	}
	if len(cfg.Attacks) == 0 {
		cfg.Attacks = attackNames()
	}
	s, err := prepare(cfg.Config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	lab, err := s.startHostileLab(ctx)
	if err != nil {
		return nil, err
	}
	report = &Report{Host: hostLine(), Commit: commit()}
	for _, name := range cfg.Attacks {
		rows, err := s.hostile(ctx, lab, name)
		if ctx.Err() != nil {
			return nil, errors.New("interrupted")
		}
		if err != nil {
			return nil, fmt.Errorf("attack %s: %w", name, err)
		}
		report.Rows = append(report.Rows, rows...)
	}
	return report, nil
}

// hostileBase is the word for the runs into the void.
const hostileBase = "baseline"

// hostileRows sums up an attack: the streams' ratio, and both sides' own figures.
func hostileRows(base string, void, hit []*hostileRun) []Row {
	var ratios []float64
	for i := range hit {
		ratios = append(ratios, hit[i].throughput()/void[i].throughput())
	}
	q, _ := quartiles(ratios)
	rows := []Row{{Name: base + ".tcp", Unit: unitRatio, Peer: hostileBase, Value: q[1], Ratio: q[1], Low: q[0], High: q[2]}}
	for _, side := range []struct {
		name string
		runs []*hostileRun
	}{{"hostile", hit}, {hostileBase, void}} {
		add := func(name, unit string, figure func(*hostileRun) float64) {
			rows = append(rows, medianRow(base+"."+name+"."+side.name, unit, side.runs, figure))
		}
		add("throughput", "Gb/s", (*hostileRun).throughput)
		add("switch_cpu", "CPU seconds of the switch per second", func(r *hostileRun) float64 { return r.cpu.switching.Seconds() / r.took.Seconds() })
		add("offered", "frames/s of the attack, most of which find a full ring", func(r *hostileRun) float64 {
			return float64(r.attack.Sent+r.attack.Refused) / r.attack.Took.Seconds()
		})
		rows = append(rows, questionRows(base, side.name, side.runs)...)
	}
	for _, reason := range reasonsOf(hit) {
		rows = append(rows, medianRow(base+".drops."+reason, "frames/s of the attack dropped", hit,
			func(r *hostileRun) float64 { return float64(r.drops[reason]) / r.took.Seconds() }))
	}
	return rows
}

func questionRows(base, side string, runs []*hostileRun) []Row {
	asked, answered, slowest := 0, 0, time.Duration(0)
	for _, r := range runs {
		asked += r.ask.Asked
		answered += r.ask.Answered
		slowest = max(slowest, r.ask.Slowest)
	}
	return []Row{
		single(strings.Join([]string{base, "answers", side}, "."), float64(answered), fmt.Sprintf("of %d ARP and ND questions", asked)),
		single(strings.Join([]string{base, "slowest_answer", side}, "."), milliseconds(slowest), "ms"),
	}
}

func medianRow(name, unit string, runs []*hostileRun, figure func(*hostileRun) float64) Row {
	var xs []float64
	for _, r := range runs {
		xs = append(xs, figure(r))
	}
	q, _ := quartiles(xs)
	return Row{Name: name, Unit: unit, Value: q[1], Low: q[0], High: q[2]}
}

// reasonsOf lists under which reasons frames were dropped in any of the runs.
func reasonsOf(runs []*hostileRun) []string {
	seen := map[string]bool{}
	for _, r := range runs {
		for reason, n := range r.drops {
			if n > 0 {
				seen[reason] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
