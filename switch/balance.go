package vswitch

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

// Two busy pods that happen to be on one worker leave another one idle. The balancer sees that some times a
// second, off the hot path, and hands one queue at a time from the busiest worker to the idlest.
//
// A hand-over keeps the order of every flow inside the switch: the old worker has sent all that it received
// before the new one receives. Two things beyond are as when the scheduler moves a thread to another core, or an
// administrator changes XPS. Frames to a veth may wait in the backlog of the old worker's core. Frames to a peer
// come out of the new worker's source sockets, and their new outer source port may lead them another way or, at
// the peer, into another worker's socket: settleTime gives those before them a lead.

const (
	// balanceEvery is how often a busy switch looks at its workers: a ring of 1,000 frames is full in a
	// hundredth of that, so a queue isn't moved for a single burst. An idle one looks every idleEvery.
	balanceEvery, idleEvery = 250 * time.Millisecond, 500 * time.Millisecond
	// maxWait bounds how much of its waiting for a core makes a worker busy, in CPU time: a saturated one counts as
	// such on a machine whose other processes leave it a quarter of a core, while one that only wakes up now and
	// then, and waits for milliseconds each time, doesn't.
	maxWait = 3
	// idleShare of a thread's time, or less, is idle: of a worker's, and of all together.
	idleShare = 0.02
	// minGap is by how much of the time the busiest worker must exceed the idlest, in minLooks looks
	// one after the other. Below it, a perfect split would free an eighth of a thread.
	minGap, minLooks = 0.25, 2
	// minLoad is the least load that is worth a move; 20 such queues make up minGap.
	minLoad = 0.0125
	// maxPart is how much of the gap a queue may bring to the other side: what is left is at most half of the gap.
	maxPart = 0.75
	// restTime is how long a queue stays at least: loads that alternate can't toss it to and fro.
	restTime = 2 * time.Second
	// settleTime is how long nobody polls a queue that is handed over: ten times what datagrams take across a
	// data centre, though a peer under full load may leave them waiting for longer. Meanwhile 450 small frames
	// at most arrive in a ring that has room for 1,000.
	settleTime = time.Millisecond
	// frameBytes are as much work as a frame. From TAP to TAP, one core does 300,000 to 450,000 small frames a
	// second, or 1.4 GB/s in super-frames: 2.6 µs for a frame and 0.7 ns for a byte.
	frameBytes = 4096
)

// polling is what the switch keeps of a receive queue.
type polling struct {
	// worker owns the queue. While it is handed over, nobody does, and this is the complement of the next owner.
	worker  atomic.Int32
	weighed uint64    // work of the port's at that worker, when the balancer last looked; guarded by Switch.mu
	moved   time.Time // guarded by Switch.mu
}

// owner returns the worker that owns the queue, or will in a moment.
func (p *polling) owner() int {
	w := p.worker.Load()
	return int(max(w, ^w)) // of a number and its complement, one is below 0
}

// work is what a worker has done for the frames that it received from a port, in frames.
func work(st *port.Stats) uint64 { return st.Rx.Frames.Load() + st.RxBytes.Load()/frameBytes }

// balancer looks at the workers and moves queues. All of it belongs to one goroutine.
type balancer struct {
	sw    *Switch
	at    time.Time    // of the last look
	time  []workerTime // by then
	busy  []float64    // by worker: share of the time before that it had work to do
	pair  [2]int       // busiest and idlest worker by then, while their gap calls for a move
	looks int          // that had this pair
}

// workerTime is what a worker's thread spent since it started.
type workerTime struct {
	cpu    time.Duration
	waited time.Duration // for a core, with work to do, when it last was busy; 0 where the kernel doesn't tell
}

func newBalancer(sw *Switch) *balancer {
	n := len(sw.workers)
	return &balancer{sw: sw, at: time.Now(), time: make([]workerTime, n), busy: make([]float64, n)}
}

func (b *balancer) run() {
	timer := time.NewTimer(balanceEvery)
	defer timer.Stop()
	for {
		select {
		case <-b.sw.stopping.Done():
			return
		case <-timer.C:
			b.measure()
			timer.Reset(b.decide())
		}
	}
}

// decide moves a queue if that is called for, and returns when to look again.
func (b *balancer) decide() time.Duration {
	if sum(b.busy) < idleShare {
		b.looks = 0
		return idleEvery
	}
	b.sw.mu.Lock()
	defer b.sw.mu.Unlock()
	queues := b.weigh()
	if !b.lasting() {
		return balanceEvery
	}
	if q, found := choose(queues, b.pair[0], b.busy[b.pair[0]]-b.busy[b.pair[1]]); found {
		b.looks = 0
		if err := b.sw.move(b.sw.stopping, q.ps, q.queue, b.pair[1]); err != nil && b.sw.stopping.Err() == nil {
			b.sw.log.Warn("a busy port stays on a busy worker", "port", q.ps.port.Name(), "err", err)
		}
	}
	return balanceEvery
}

// measure reads how busy the workers were since it was called last.
func (b *balancer) measure() {
	now := time.Now()
	took := now.Sub(b.at)
	b.at = now
	for i, w := range b.sw.workers {
		last, cpu := &b.time[i], w.cpu()
		worked := cpu - last.cpu
		last.cpu = cpu
		if worked.Seconds() > idleShare*took.Seconds() { // an idle one waits for nobody, and reading a file costs 20 µs
			waited := w.waited()
			worked += min(waited-last.waited, maxWait*worked)
			last.waited = waited
		}
		b.busy[i] = worked.Seconds() / took.Seconds()
		w.busy.Store(int32(b.busy[i] * 1000))
	}
}

// cpu returns the CPU time that the worker has used, 0 before Start.
func (w *worker) cpu() time.Duration {
	// pthread_getcpuclockid(3): the clock of a thread is its complemented number and the kind of the clock.
	const cpuClockSched, perThread = 2, 4
	tid := w.thread.Load()
	var ts unix.Timespec
	if tid == 0 || unix.ClockGettime(^tid<<3|perThread|cpuClockSched, &ts) != nil { // it may have ended
		return 0
	}
	return time.Duration(ts.Nano())
}

// waited returns how long the worker's thread has waited for a core, 0 where the kernel doesn't tell.
func (w *worker) waited() time.Duration {
	// Documentation/scheduler/sched-stats.rst: time on the CPU, time waiting to run, timeslices; nanoseconds.
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/schedstat", w.thread.Load()))
	if fields := strings.Fields(string(stat)); len(fields) == 3 {
		ns, _ := strconv.ParseInt(fields[1], 10, 64)
		return time.Duration(ns)
	}
	return 0
}

// lasting says that a gap calls for a move, for the minLooks'th time in a row.
func (b *balancer) lasting() bool {
	pair := [2]int{slices.Index(b.busy, slices.Max(b.busy)), slices.Index(b.busy, slices.Min(b.busy))}
	switch {
	case b.busy[pair[0]]-b.busy[pair[1]] < minGap:
		b.looks = 0
	case pair == b.pair:
		b.looks++
	default:
		b.pair, b.looks = pair, 1
	}
	return b.looks >= minLooks
}

// weighedQueue is a receive queue with what it costs its worker.
type weighedQueue struct {
	ps     *portState
	queue  int
	worker int
	fixed  bool    // it stays where it is
	load   float64 // share of a thread's time
}

// weigh parts the time of each worker among its queues, by their work since the last look.
func (b *balancer) weigh() (queues []weighedQueue) {
	done := make([]float64, len(b.busy))
	for _, ps := range b.sw.snapshot.Load().ports[1:] {
		if ps == nil {
			continue
		}
		for q := range ps.polling {
			p := &ps.polling[q]
			w, total := p.owner(), work(&ps.stats[p.owner()])
			load := float64(total - p.weighed)
			p.weighed = total
			done[w] += load
			// A port with several queues has its load spread as it is, and a tunnel's are spread by the kernel.
			fixed := len(ps.polling) > 1 || ps.role == RoleTunnel || b.at.Sub(p.moved) < restTime
			queues = append(queues, weighedQueue{ps, q, w, fixed, load})
		}
	}
	for i := range queues {
		if q := &queues[i]; q.load > 0 {
			q.load *= b.busy[q.worker] / done[q.worker]
		}
	}
	return queues
}

// choose returns the queue of the worker that would come nearest to closing the gap to another one.
func choose(queues []weighedQueue, from int, gap float64) (best weighedQueue, found bool) {
	miss := func(q weighedQueue) float64 { return max(q.load-gap/2, gap/2-q.load) }
	for _, q := range queues {
		if q.worker == from && !q.fixed && q.load >= minLoad && q.load <= maxPart*gap && (!found || miss(q) < miss(best)) {
			best, found = q, true
		}
	}
	return best, found
}

// move hands a port's only receive queue over to another worker. For settleTime or a little more nobody polls it,
// and frames wait in the kernel. sw.mu is held; ctx ends with the switch.
func (sw *Switch) move(ctx context.Context, ps *portState, queue, to int) error {
	p, rx, from := &ps.polling[queue], ps.rx[queue], ps.polling[queue].owner()
	// First what can fail. An event without interest is not reported, except that of a device that is gone.
	ev := unix.EpollEvent{Fd: int32(ps.id), Pad: int32(queue)}
	if err := unix.EpollCtl(sw.workers[to].epoll, unix.EPOLL_CTL_ADD, rx.FD(), &ev); err != nil {
		return fmt.Errorf("poll its queue from worker %d: %w", to, err)
	}
	if err := unix.EpollCtl(sw.workers[from].epoll, unix.EPOLL_CTL_DEL, rx.FD(), nil); err != nil {
		_ = unix.EpollCtl(sw.workers[to].epoll, unix.EPOLL_CTL_DEL, rx.FD(), nil) // as it was
		return fmt.Errorf("its device is gone: worker %d polls it no more: %w", from, err)
	}
	p.worker.Store(^int32(to))
	sw.queues[from]--
	sw.queues[to]++
	began := time.Now()
	if err := sw.domain.Wait(ctx); err != nil {
		return err
	}
	time.Sleep(settleTime - time.Since(began))
	// The old worker has sent what it received, and the events of the queue that it still has it ignores.
	ps.limits[to] = ps.limits[from]
	p.weighed, p.moved = work(&ps.stats[to]), time.Now()
	p.worker.Store(int32(to))
	sw.taken[to]++
	// Writable it always is: so the new worker looks once, for the queue may hold frames that its descriptor
	// doesn't announce.
	ev.Events = unix.EPOLLIN | unix.EPOLLOUT
	_ = unix.EpollCtl(sw.workers[to].epoll, unix.EPOLL_CTL_MOD, rx.FD(), &ev) // fails for a device that has gone since
	sw.log.Debug("a port has another worker", "port", ps.port.Name(), "from", from, "to", to)
	return nil
}

func sum(xs []float64) (total float64) {
	for _, x := range xs {
		total += x
	}
	return total
}
