package vswitch

import (
	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

// stopID marks the epoll event that ends a worker; as a port ID it is never handed out.
const stopID = -1

// recv is the first stage: it takes one burst from the queue that the event names. It reports whether
// there is anything to do.
func (w *worker) recv(ev unix.EpollEvent) bool {
	if ev.Fd == stopID {
		w.stopped = true
		return false
	}
	w.snap = w.sw.snapshot.Load()
	w.in = w.snap.port(port.ID(ev.Fd))
	if w.in == nil { // detached between epoll_wait and here
		return false
	}
	w.st = &w.in.stats[w.id]
	w.burst.Reset()
	w.in.rx[ev.Pad].Recv(&w.burst, w.pool, w.st)
	return w.burst.Len() > 0
}
