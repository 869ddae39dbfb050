package vswitch

import (
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapyard/fib"
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

	// The burst in hand, stage by stage.
	snap     *Snapshot
	in       *portState
	st       *port.Stats // of in and this worker
	burst    frame.Burst
	parsed   [frame.BurstSize]wire.Parsed
	verdicts [frame.BurstSize]verdict
	routing  routing
	learned  learnCache
	out      outPorts
	segs     segmenter

	events  [maxEvents]unix.EpollEvent
	stopped bool
	stopFD  int
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
		pool: frame.NewPool(16*frame.BurstSize, frame.DefaultArena),
		segs: newSegmenter(),
	}
}

// run is the loop. A pass takes one burst from each queue that is ready.
func (w *worker) run() {
	runtime.LockOSThread()
	for n := w.wait(); !w.stopped; n = w.wait() {
		for _, ev := range w.events[:n] {
			w.pass(ev)
		}
	}
	w.reader.Close()
}

// pass is the data path: five stages, no back edges.
func (w *worker) pass(ev unix.EpollEvent) {
	w.reader.Quiesce()
	if w.recv(ev) {
		w.parse()
		w.lookup()
		w.act()
		w.send()
	}
}

// wait blocks until a queue is ready. Syscall, not RawSyscall: it may sleep, and the scheduler must know.
func (w *worker) wait() int {
	w.live.Store(int64(w.pool.Live()))
	w.reader.Offline()
	n, err := unix.EpollWait(w.epoll, w.events[:], -1)
	w.reader.Online()
	if err != nil { // EINTR; anything else can't happen to an epoll descriptor that we own
		return 0
	}
	return n
}

// inject runs frames that the switch itself made through the same stages.
func (w *worker) inject(f *frame.Frame) {
	w.snap = w.sw.snapshot.Load()
	w.in = w.snap.ports[port.Local]
	w.st = &w.in.stats[w.id]
	w.burst.Reset()
	w.burst.Append(f)
	w.parse()
	w.lookup()
	w.act()
	w.send()
}
