package vswitch

import (
	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

// stopID marks the epoll event that ends a worker; as a port ID it is never handed out.
const stopID = -1

// recv is the first stage: it takes one burst from the queue that the event names, and reports whether
// the queue has more.
func (w *worker) recv(ev unix.EpollEvent) (more bool) {
	w.burst.Reset()
	if ev.Fd == stopID {
		w.stopped = true
		return false
	}
	w.snap = w.sw.snapshot.Load()
	w.in = w.snap.port(port.ID(ev.Fd))
	if w.in == nil || !w.owns(w.in, int(ev.Pad)) { // detached since epoll_wait; the ID may be another port's
		return false
	}
	w.st = &w.in.stats[w.id]
	return w.in.rx[ev.Pad].Recv(&w.burst, w.pool, w.st)
}

func (w *worker) owns(ps *portState, queue int) bool {
	return queue < len(ps.rx) && ps.queueWorker(queue, len(w.sw.workers)) == w.id
}
