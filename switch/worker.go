package vswitch

import (
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapyard/fib"
	"tapyard/switch/flow"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// worker moves bursts through the stages. All of it belongs to one goroutine on one thread.
type worker struct {
	sw     *Switch
	id     int // index into every portState's stats and tx
	epoll  int
	reader *fib.Reader
	pool   *frame.Pool
	live   atomic.Int64 // pool balance at the end of the last pass, for the ledger
	thread atomic.Int32 // its number in the kernel; 0 before Start
	busy   atomic.Int32 // thousandths of its time with work to do, at the balancer's last look

	// The burst in hand, stage by stage.
	now      int64 // when it was received, Unix time in nanoseconds
	snap     *Snapshot
	in       *portState
	st       *port.Stats // of in and this worker
	burst    frame.Burst
	dropped  int // frames of the burst
	parsed   [frame.BurstSize]wire.Parsed
	verdicts [frame.BurstSize]verdict
	routing  routing
	tracked  *flow.Batch
	learned  learnCache
	out      outPorts
	segs     segmenter

	events       [maxEvents]unix.EpollEvent
	ready, again []unix.EpollEvent // queues of this round, and those that have more for the next
	paused       []pausedQueue
	stopped      bool
	wakeFD       int          // an eventfd; what is written there is one of the wake numbers
	rounds       atomic.Int64 // how often the worker was woken to show that it goes round
}

// maxEvents is how many ready queues one epoll_wait returns; more wait for the next call, which costs
// 0.3 µs a burst.
const maxEvents = 32

func newWorker(sw *Switch, id int) *worker {
	return &worker{
		sw: sw, id: id, epoll: -1,
		reader: sw.domain.Register(),
		// A flood makes at most one clone per port of a frame; the clones of a burst are sent before the
		// next frame is flooded when the pool runs low.
		pool:    frame.NewPoolWithWindows(16*frame.BurstSize, frame.DefaultArena, frame.BurstSize),
		segs:    newSegmenter(),
		tracked: flow.NewBatch(frame.BurstSize),
	}
}

// run is the loop. A round takes one burst from each queue that is ready.
func (w *worker) run() {
	runtime.LockOSThread()
	w.thread.Store(int32(unix.Gettid()))
	for !w.stopped {
		for _, ev := range w.wait() {
			if w.pass(ev) {
				w.again = append(w.again, unix.EpollEvent{Fd: ev.Fd, Pad: ev.Pad}) // what it announced was dealt with
			}
		}
	}
	w.drain()
	w.reader.Close()
}

// drain forwards what the worker's queues have taken from the kernel already: the next process can't know it.
func (w *worker) drain() {
	for _, ps := range w.sw.snapshot.Load().ports[1:] {
		if ps == nil {
			continue
		}
		for q, rx := range ps.rx {
			d, holds := rx.(port.Drainer)
			for holds && w.owns(ps, q) && d.Drain() {
				w.pass(unix.EpollEvent{Fd: int32(ps.id), Pad: int32(q)})
			}
		}
	}
	w.live.Store(int64(w.pool.Live()))
}

// pass is the data path: five stages, no back edges. It reports whether the queue has more.
func (w *worker) pass(ev unix.EpollEvent) (more bool) {
	w.reader.Quiesce()
	more = w.recv(ev)
	if w.burst.Len() == 0 {
		return more
	}
	w.dropped = 0
	w.parse()
	w.lookup()
	w.act()
	w.send()
	if w.in.single && w.in.limits[w.id].recent.add(w.now, w.burst.Len(), w.dropped) {
		w.pause(ev)
		return false
	}
	return more
}

// wait returns the queues that are ready, those first that had more than a burst: they may hold frames
// that their descriptor no longer announces. It blocks until there is one, by Syscall, not RawSyscall:
// the scheduler must know that the thread may sleep.
func (w *worker) wait() []unix.EpollEvent {
	w.live.Store(int64(w.pool.Live()))
	timeout := -1
	switch {
	case len(w.again) > 0:
		timeout = 0
	case len(w.paused) > 0:
		timeout = 1 // ms, a pauseWindow
	}
	w.reader.Offline()
	n, err := unix.EpollWait(w.epoll, w.events[:], timeout)
	w.reader.Online()
	if err != nil { // EINTR; anything else can't happen to an epoll descriptor that we own
		n = 0
	}
	w.ready = append(w.ready[:0], w.again...)
	for _, ev := range w.events[:n] {
		if !slices.ContainsFunc(w.again, func(a unix.EpollEvent) bool { return a.Fd == ev.Fd && a.Pad == ev.Pad }) {
			w.ready = append(w.ready, ev)
		}
	}
	w.again = w.again[:0]
	if len(w.paused) > 0 {
		w.resume()
	}
	return w.ready
}

// pausedQueue is a receive queue that isn't polled for the rest of its window.
type pausedQueue struct {
	ev    unix.EpollEvent
	ps    *portState
	until int64
}

// pause stops polling the queue: a level-triggered descriptor would report it again and again.
func (w *worker) pause(ev unix.EpollEvent) {
	w.paused = append(w.paused, pausedQueue{ev, w.in, w.in.limits[w.id].recent.began + pauseWindow})
	w.interest(w.in.rx[ev.Pad], ev, 0)
}

// resume polls the queues again whose window is over. Those of ports that are gone were unpolled by Detach,
// which waits for us before their descriptors are closed; those that were handed over aren't ours to change.
func (w *worker) resume() {
	now, snap := w.sw.now().UnixNano(), w.sw.snapshot.Load()
	w.paused = slices.DeleteFunc(w.paused, func(p pausedQueue) bool {
		if now < p.until && p.until-now <= pauseWindow {
			return false
		}
		if snap.port(p.ps.id) == p.ps {
			w.interest(p.ps.rx[p.ev.Pad], p.ev, unix.EPOLLIN)
			w.ready = append(w.ready, p.ev) // it may hold frames that its descriptor doesn't announce
		}
		return true
	})
}

func (w *worker) interest(q port.RxQueue, ev unix.EpollEvent, events uint32) {
	ev.Events = events
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_MOD, q.FD(), &ev) // fails for a queue that was unpolled before: gone, or handed over
}

// inject runs frames that the switch itself made through the same stages.
func (w *worker) inject(f *frame.Frame) {
	w.in = w.snap.ports[port.Local]
	w.st = &w.in.stats[w.id]
	w.burst.Reset()
	w.burst.Append(f)
	w.parse()
	w.lookup()
	w.act()
	w.send()
}
