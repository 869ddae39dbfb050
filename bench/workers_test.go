package bench

import (
	"context"
	"slices"
	"testing"
	"time"
)

// Two real pairs of pods whose senders are on one worker: every frame is accounted for, in order, and the agent's
// workers and the kernel's figures of their threads are found.
func TestTwoWorkersKeepTheOrder(t *testing.T) {
	s, l := newWorkersLab(t, 1, 4)
	run, err := s.offerPairs(t.Context(), l, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", *run)
	if run.reordered != 0 || run.received == 0 || run.frames > 0.5 || run.cpu > 0.5 || run.rate <= 0 {
		t.Errorf("%+v", *run)
	}
	if r, err := l.readWorkers(t.Context()); err != nil || len(r.frames) != 2 || r.frames[0]+r.frames[1] < run.received || r.cpu[0]+r.cpu[1] == 0 {
		t.Errorf("the workers: %+v, %v", r, err)
	}
}

// newWorkersLab starts an agent with two workers, for the time of the test.
func newWorkersLab(t *testing.T, queues, pods int) (*session, *workersLab) {
	t.Helper()
	ownTempDir(t)
	s, err := prepare(Config{Executable: buildTapyard(t), Progress: t.Output()})
	must(t, err)
	t.Cleanup(func() { must(t, s.close()) })
	l, err := s.startWorkersLab(context.Background(), 2, queues, pods)
	t.Cleanup(func() { must(t, l.close()) }) // an error: its ledger didn't balance
	must(t, err)
	return s, l
}

// A real agent's pod that sends many flows has both workers by its two queues, which the agent shows, and every flow
// stays in order.
func TestTwoQueuesKeepTheOrder(t *testing.T) {
	s, l := newWorkersLab(t, 2, 2)
	ports, err := l.portsByMAC(t.Context())
	must(t, err)
	for _, p := range l.pods {
		if w := slices.Sorted(slices.Values(ports[p.mac.String()].Workers)); !slices.Equal(w, []int{0, 1}) {
			t.Errorf("the queues of %s are on workers %v", p.netns, w)
		}
	}
	run, err := s.offerOnePair(t.Context(), l, time.Second)
	must(t, err)
	t.Logf("%+v", *run)
	if run.reordered != 0 || run.received == 0 || run.frames < 0.25 || run.frames > 0.5 || run.moves != 0 {
		t.Errorf("%+v", *run)
	}
}

func TestWorkersRowsJudge(t *testing.T) {
	good := &workersRun{received: 5e6, rate: 3e6, frames: 0.45, cpu: 0.48, moves: 1}
	poor := &workersRun{received: 6e6, rate: 2e6, frames: 0.3, cpu: 0.41, moves: 2, reordered: 1}
	for _, c := range []struct {
		two                []*workersRun
		order, frames, cpu bool
		moves              float64
	}{
		{[]*workersRun{good, good, good}, true, true, true, 3},
		{[]*workersRun{good, good, poor}, false, false, true, 4},
	} {
		rows := map[string]Row{}
		for _, r := range workersRows(c.two, []*workersRun{poor, poor, poor}) {
			rows[r.Name] = r
		}
		order, frames, cpu := rows["workers.reordered"], rows["workers.share.frames"], rows["workers.share.cpu"]
		if *order.Holds != c.order || *frames.Holds != c.frames || *cpu.Holds != c.cpu || rows["workers.moves"].Value != c.moves {
			t.Errorf("order %t, frames %t, cpu %t, moves %v of %+v", *order.Holds, *frames.Holds, *cpu.Holds, rows["workers.moves"].Value, c)
		}
		if r := rows["workers.one"]; r.Value != 1.5 || r.Pairs != 3 || r.Peer != "one worker" {
			t.Errorf("%+v", r)
		}
	}
	if got := smallestPart([]uint64{10, 100, 1000}, []uint64{20, 130, 1060}); got != 0.1 {
		t.Errorf("smallest part %v, want 0.1", got)
	}
}
