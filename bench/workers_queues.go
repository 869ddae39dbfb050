package bench

import (
	"context"
	"errors"
	"time"
)

// onePodScenario has enough flows for queues to get equal parts, and none that could fill one alone.
var onePodScenario = scenario{name: "flows", flows: interleavedFlows}

// onePod measures what a second queue gains a pod that sends to another one, in a switch of two workers.
func (s *session) onePod(ctx context.Context) (rows []Row, err error) {
	var labs [2]*workersLab // with two queues, and with one
	for i := range labs {
		labs[i], err = s.startWorkersLab(ctx, 2, 2-i, 2)
		defer func() { err = errors.Join(err, labs[i].close()) }()
		if err != nil {
			return nil, err
		}
	}
	runs, err := s.workersRuns(ctx, labs, s.offerOnePair, 0)
	if err != nil {
		return nil, err
	}
	two, one := runs[0], runs[1]
	return []Row{
		workersOrder("workers.onepod.reordered", two),
		workersFigure("workers.onepod.share", "of the frames, by the worker that received fewer", func(r *workersRun) float64 { return r.frames }, two),
		workersRatio("workers.onepod.onequeue", "one queue", two, one),
		workersFigure("workers.onepod.frames_per_second.two", "frames/s", workersRate, two),
		workersFigure("workers.onepod.frames_per_second.one", "frames/s", workersRate, one),
	}, nil
}

// offerOnePair has the lab's first pod send to its second one, as fast as its device takes it.
func (s *session) offerOnePair(ctx context.Context, l *workersLab, d time.Duration) (*workersRun, error) {
	byMAC, err := l.portsByMAC(ctx)
	if err != nil {
		return nil, err
	}
	return s.offerAll(ctx, l, []*workersPair{l.pair(l.pods[0], l.pods[1], byMAC)}, onePodScenario, d)
}
