package vswitch

import (
	"time"

	"tapyard/switch/fdb"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// learnEvent tells the slow worker where a station was seen; the frame itself goes on.
type learnEvent struct {
	in  *portState
	vni uint32
	mac wire.MAC
}

// learnCache remembers the last source of the burst that needed nothing, because the frames of a burst
// mostly come from one station.
type learnCache struct {
	known bool
	mac   wire.MAC
}

// learn asks the slow worker to learn the frame's source when the FDB doesn't have it behind this port.
func (w *worker) learn(f *frame.Frame) {
	src := wire.Ethernet(f.Bytes()).Src()
	if w.learned.known && w.learned.mac == src {
		return
	}
	if w.sw.fdb.Seen(w.now, f.VNI, src, port.Dest{Port: w.in.id}) == fdb.Known {
		w.learned = learnCache{true, src}
		return
	}
	if !admit(&w.in.quota.events, eventsPerPort) {
		return // the next frame brings another
	}
	select {
	case w.sw.slow.events <- learnEvent{w.in, f.VNI, src}:
	default:
		w.in.quota.events.Add(-1)
	}
}

// learnNow changes the table. A static entry wins over what is seen, so a pod can't take over another
// one's MAC.
func (s *slowWorker) learnNow(e learnEvent) {
	if s.sw.snapshot.Load().port(e.in.id) == e.in {
		outcome, _ := s.sw.fdb.Learn(time.Now().UnixNano(), e.vni, e.mac, port.Dest{Port: e.in.id})
		if outcome == fdb.Moved {
			s.sw.log.Debug("station moved", "mac", e.mac, "vni", e.vni, "port", e.in.port.Name())
		}
	}
	e.in.quota.events.Add(-1)
}
