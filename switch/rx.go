package vswitch

import (
	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

// wakeID marks the epoll event by which others speak to a worker; as a port ID it is never handed out.
const wakeID = -1

// recv is the first stage: it takes one burst from the queue that the event names, and reports whether
// the queue has more.
func (w *worker) recv(ev unix.EpollEvent) (more bool) {
	w.burst.Reset()
	w.now = w.sw.now().UnixNano()
	if ev.Fd == wakeID {
		w.woken()
		return false
	}
	w.snap = w.sw.snapshot.Load()
	w.in = w.snap.port(port.ID(ev.Fd))
	if w.in == nil || !w.owns(w.in, int(ev.Pad)) { // detached since epoll_wait, the ID may be another port's; or handed over
		return false
	}
	if ev.Events&unix.EPOLLOUT != 0 {
		w.interest(w.in.rx[ev.Pad], ev, unix.EPOLLIN) // it was handed over to us, see move
	}
	w.st = &w.in.stats[w.id]
	w.learned = learnCache{}
	more = w.in.rx[ev.Pad].Recv(w.id, &w.burst, w.pool, w.st)
	if ev.Events&unix.EPOLLERR != 0 && !more && w.burst.Len() == 0 {
		w.unpollGone(w.in.rx[ev.Pad])
	}
	return more
}

// unpollGone ends the polling of a device that was deleted under its port: its descriptor would report
// EPOLLERR again and again until the port is detached. A packet socket also reports, once, a device that goes
// down and a frame that it can't describe.
func (w *worker) unpollGone(q port.RxQueue) {
	if p, tells := w.in.port.(interface{ Gone() bool }); tells && !p.Gone() {
		return
	}
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, q.FD(), nil) // there is nobody to tell
	w.sw.log.Warn("the device of a port is gone; a pod's was removed without a DEL, or deleted by it", "port", w.in.port.Name())
}

func (w *worker) owns(ps *portState, queue int) bool {
	return queue < len(ps.rx) && ps.polling[queue].worker.Load() == int32(w.id)
}
