package vswitch

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Two busy pods on one worker are parted, and a third one that alone fills a worker stays.
func TestTheBalancerPartsBusyPods(t *testing.T) {
	f := newFleet(t, 2)
	var pods []*fleetPod
	for range 4 { // workers 0, 1, 0, 1
		pods = append(pods, f.attach(PortConfig{}))
	}
	b := newBalancer(f.sw)
	b.at = time.Now()
	// interval has pods send, and claims that the workers were that busy meanwhile.
	interval := func(busy [2]float64, frames [4]int) {
		for i, p := range pods {
			ps := f.sw.snapshot.Load().port(p.id)
			ps.stats[ps.polling[0].owner()].Rx.Add(uint64(frames[i]), uint64(frames[i]))
		}
		copy(b.busy, busy[:])
		b.decide()
		b.at = b.at.Add(balanceEvery)
	}
	owners := func() (o [4]int) {
		for i, p := range pods {
			o[i] = f.sw.snapshot.Load().port(p.id).polling[0].owner()
		}
		return o
	}
	for _, step := range []struct {
		busy   [2]float64
		frames [4]int
		want   [4]int
		why    string
	}{
		{[2]float64{0.9, 0.02}, [4]int{500, 10, 400, 0}, [4]int{0, 1, 0, 1}, "once may be a burst"},
		{[2]float64{0.3, 0.1}, [4]int{100, 10, 100, 0}, [4]int{0, 1, 0, 1}, "a small gap ends the count"},
		{[2]float64{0.9, 0.02}, [4]int{500, 10, 400, 0}, [4]int{0, 1, 0, 1}, "so this is the first again"},
		{[2]float64{0.9, 0.02}, [4]int{500, 10, 300, 0}, [4]int{0, 1, 1, 1}, "the one nearer to half of the gap"},
		{[2]float64{0.1, 0.9}, [4]int{50, 10, 400, 0}, [4]int{0, 1, 1, 1}, "it is the other way round at once"},
		{[2]float64{0.1, 0.9}, [4]int{50, 2, 400, 0}, [4]int{0, 1, 1, 1}, "but one that has just moved stays"},
		{[2]float64{0.1, 0.9}, [4]int{50, 200, 300, 0}, [4]int{0, 0, 1, 1}, "and another may go instead"},
		{[2]float64{0, 1}, [4]int{0, 0, 900, 0}, [4]int{0, 0, 1, 1}, "a pod that alone fills a worker"},
		{[2]float64{0, 1}, [4]int{0, 0, 900, 0}, [4]int{0, 0, 1, 1}, "stays there"},
	} {
		interval(step.busy, step.frames)
		if got := owners(); got != step.want {
			t.Fatalf("owners %v, want %v: %s", got, step.want, step.why)
		}
	}
	for i, n := range f.sw.queues {
		if n != 2 {
			t.Errorf("worker %d is said to have %d queues, want 2", i, n)
		}
	}
}

// Whatever the loads, as long as they stay: every move makes the split more even, so the moves end.
func TestChoosingEnds(t *testing.T) {
	for range 2000 {
		workers := make([]float64, 2+rand.IntN(7))
		var queues []weighedQueue
		for range 1 + rand.IntN(40) {
			q := weighedQueue{worker: rand.IntN(len(workers)), load: rand.ExpFloat64() / 10}
			workers[q.worker] += q.load
			q.queue = len(queues)
			queues = append(queues, q)
		}
		for moves := 0; ; moves++ {
			from, to := slices.Index(workers, slices.Max(workers)), slices.Index(workers, slices.Min(workers))
			gap := workers[from] - workers[to]
			best, found := choose(queues, from, gap)
			if gap < minGap || !found {
				break
			}
			if workers[to]+best.load >= workers[from] || moves > 10*len(queues) {
				t.Fatalf("move %d of %.3f: %v", moves, best.load, workers)
			}
			workers[from] -= best.load
			workers[to] += best.load
			queues[best.queue].worker = to
		}
	}
}

// wakeUps returns how often a thread of this process has waited.
func wakeUps(t *testing.T, thread int) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", thread))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(status), "voluntary_ctxt_switches:")
	if !found {
		t.Fatalf("no context switches in %s", status)
	}
	n, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(n)
}

// Workers of a hundred pods that don't send aren't woken: not by the clock, not by the balancer.
func TestIdleWorkersSleep(t *testing.T) {
	f := newFleet(t, 2)
	for range 100 {
		f.attach(PortConfig{})
	}
	f.sw.Start()
	defer f.stop()
	counts := func() (c [2]string) {
		for i, v := range f.sw.WorkerViews() {
			c[i] = wakeUps(t, v.Thread)
		}
		return c
	}
	for f.sw.WorkerViews()[0].Thread == 0 || f.sw.WorkerViews()[1].Thread == 0 || len(f.sw.slow.arrivals) > 0 {
		time.Sleep(time.Millisecond)
	}
	before := counts()
	for settled := false; !settled; { // the announcements of the pods
		time.Sleep(300 * time.Millisecond)
		now := counts()
		settled, before = now == before, now
	}
	time.Sleep(2 * idleEvery)
	if after := counts(); after != before {
		t.Errorf("context switches rose from %v to %v without a frame", before, after)
	}
}
