package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

const (
	// workersFrames is how many numbered frames must have come through two workers for the order to count.
	workersFrames = 10_000_000
	// workersTime is how long a run lasts. The switch needs up to a second to part two senders of one worker: for
	// that time one worker has all, and of the run at most 60 % where nothing else is uneven.
	workersTime = 5 * time.Second
	// workersShare is the least part of the work that each of two workers has to do.
	workersShare = 0.4
	// workersGain is how much more two workers have to forward than one, where workersCores leave both, the
	// generators and the sinks a core.
	workersGain, workersCores = 1.5, 4
	// maxWorkersRounds bounds how long a slow machine takes for workersFrames.
	maxWorkersRounds = 60
)

func workersCommand() *cobra.Command {
	cfg := Config{}
	cmd := benchmarkCommand("workers", "Whether two workers share the load of two pairs of pods without reordering, and sleep when nobody sends",
		func(ctx context.Context, progress io.Writer) (*Report, error) {
			cfg.Progress = progress
			return Workers(ctx, cfg)
		})
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", floorPairs, "pairs of runs with one worker and with two, at least; there are more until 10^7 frames were counted")
	return cmd
}

// Workers measures how two workers share the load of two busy pairs of pods, whose senders are on one worker when
// each run begins: how many frames were overtaken, what the less busy worker did, and how much more two workers
// forward than one; the same for one busy pair, whose pods have as many queues as there are workers. Then it measures
// what a hundred idle pods cost.
func Workers(ctx context.Context, cfg Config) (*Report, error) {
	return runBenchmark(ctx, cfg, func(ctx context.Context, s *session) ([]Row, error) {
		rows, err := s.workers(ctx)
		if err != nil {
			return nil, err
		}
		onePod, err := s.onePod(ctx)
		if err != nil {
			return nil, err
		}
		idle, err := s.idleWorkers(ctx)
		return append(append(rows, onePod...), idle...), err
	})
}

// workers runs agents with two workers and with one in turn.
func (s *session) workers(ctx context.Context) (rows []Row, err error) {
	var labs [2]*workersLab // with two workers, and with one
	for i := range labs {
		labs[i], err = s.startWorkersLab(ctx, 2-i, 1, 4)
		defer func() { err = errors.Join(err, labs[i].close()) }()
		if err != nil {
			return nil, err
		}
	}
	runs, err := s.workersRuns(ctx, labs, s.offerPairs, workersFrames)
	if err != nil {
		return nil, err
	}
	return workersRows(runs[0], runs[1]), nil
}

// workersRuns has both labs offered to in turn, until frames have come through the first one. Runs that don't balance
// don't count.
func (s *session) workersRuns(ctx context.Context, labs [2]*workersLab, offer func(context.Context, *workersLab, time.Duration) (*workersRun, error),
	frames uint64) (runs [2][]*workersRun, err error) {
	for round := 0; len(runs[0]) < s.cfg.Repeat || received(runs[0]) < frames; round++ {
		if round == maxWorkersRounds {
			return runs, fmt.Errorf("%d frames came through %s in %d runs that count, want %d: is the machine busy otherwise?",
				received(runs[0]), labs[0], len(runs[0]), frames)
		}
		var pair [2]*workersRun
		for i, l := range labs {
			if pair[i], err = offer(ctx, l, workersTime); err != nil {
				err = fmt.Errorf("%s: %w", l, err)
				break
			}
		}
		var uneven *imbalance
		switch {
		case errors.As(err, &uneven):
			s.say("workers: %v", err)
		case err != nil:
			return runs, err
		default:
			runs[0], runs[1] = append(runs[0], pair[0]), append(runs[1], pair[1])
			s.say("workers %d: %s frames/s by %s, of which the less busy worker did %.0f %% in %.0f %% of the CPU time; %s by %s; %d reordered",
				len(runs[0]), short(pair[0].rate), labs[0], 100*pair[0].frames, 100*pair[0].cpu, short(pair[1].rate), labs[1], pair[0].reordered)
		}
	}
	return runs, nil
}

// workersRun is what came of a run through both pairs of pods.
type workersRun struct {
	received, reordered uint64
	rate                float64 // frames per second
	frames, cpu         float64 // the smallest part of a worker in what all received, and in their threads' CPU time
	moves               uint64  // of queues between workers
}

func received(runs []*workersRun) (sum uint64) {
	for _, r := range runs {
		sum += r.received
	}
	return sum
}

// workersRows are the rows of the runs with two workers and with one, which are neighbours.
func workersRows(two, one []*workersRun) []Row {
	share := func(name, unit string, of func(*workersRun) float64) Row {
		r := workersFigure(name, unit, of, two)
		r.Floor, r.Holds = workersShare, new(r.Low >= workersShare)
		return r
	}
	var moves uint64
	for _, r := range two {
		moves += r.moves
	}
	ratio := workersRatio("workers.one", "one worker", two, one)
	if runtime.NumCPU() >= workersCores {
		ratio.Floor, ratio.Holds = workersGain, new(ratio.Low >= workersGain)
	}
	return []Row{
		workersOrder("workers.reordered", two),
		share("workers.share.frames", "of the frames, by the worker that received fewer", func(r *workersRun) float64 { return r.frames }),
		share("workers.share.cpu", "of the workers' CPU time, by the one that used less", func(r *workersRun) float64 { return r.cpu }),
		ratio,
		workersFigure("workers.frames_per_second.two", "frames/s", workersRate, two),
		workersFigure("workers.frames_per_second.one", "frames/s", workersRate, one),
		workersCount("workers.moves", "queues moved between the two workers meanwhile", moves),
	}
}

func workersRate(r *workersRun) float64 { return r.rate }

// workersFigure is the median of a figure of the runs.
func workersFigure(name, unit string, of func(*workersRun) float64, runs []*workersRun) Row {
	var c []float64
	for _, r := range runs {
		c = append(c, of(r))
	}
	q, _ := quartiles(c)
	return Row{Name: name, Unit: unit, Value: q[1], Low: q[0], High: q[2]}
}

// workersRatio is how much more came through than by the runs beside them.
func workersRatio(name, peer string, runs, beside []*workersRun) Row {
	var gain []float64
	for i := range runs {
		gain = append(gain, runs[i].rate/beside[i].rate)
	}
	q, _ := quartiles(gain)
	return Row{Name: name, Unit: unitRatio, Peer: peer, Value: q[1], Ratio: q[1], Low: q[0], High: q[2], Pairs: len(gain)}
}

func workersCount(name, unit string, n uint64) Row {
	return Row{Name: name, Unit: unit, Value: float64(n), Low: float64(n), High: float64(n)}
}

// workersOrder holds if no frame was overtaken.
func workersOrder(name string, runs []*workersRun) Row {
	var reordered uint64
	for _, r := range runs {
		reordered += r.reordered
	}
	order := workersCount(name, fmt.Sprintf("of %s numbered frames", short(float64(received(runs)))), reordered)
	order.Holds = new(reordered == 0)
	return order
}

// smallestPart returns the smallest of the gains' part in their sum.
func smallestPart(before, after []uint64) float64 {
	gains := make([]uint64, len(before))
	var total uint64
	for i := range gains {
		gains[i] = after[i] - before[i]
		total += gains[i]
	}
	return float64(slices.Min(gains)) / float64(max(total, 1))
}
