package vswitch

import (
	"net/netip"

	"tapyard/switch/drop"
	"tapyard/switch/fdb"
	"tapyard/switch/frame"
	"tapyard/switch/neigh"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// event tells the slow worker what was seen; the frame itself goes on, or is dropped by the worker.
type event struct {
	in      *portState
	vni     uint32
	mac     wire.MAC
	dest    port.Dest
	claimed netip.Addr // valid: the port sent from this address, which isn't its own
}

// learnCache remembers the last source of the burst that needed nothing, because the frames of a burst
// mostly come from one station.
type learnCache struct {
	known bool
	vni   uint32
	mac   wire.MAC
	peer  uint32
}

// admit checks the frame's source and has it learned. It returns why the frame is dropped, or drop.None.
func (w *worker) admit(f *frame.Frame, p *wire.Parsed, net *network) drop.Reason {
	switch w.in.role {
	case RoleAccess:
		if reason := w.admitClaim(f, p); reason != drop.None {
			return reason
		}
		if p.TCPFlags&(wire.TCPSyn|wire.TCPAck) == wire.TCPSyn && !w.in.limits[w.id].syn.take(w.now, f.Wire()) {
			return drop.SYNLimit
		}
		w.learn(f, 0)
	case RoleTunnel:
		src := wire.Ethernet(f.Bytes()).Src()
		if net.routes() && src == net.RouterMAC || net.Stretched && !w.learn(f, f.Peer) {
			return drop.Looped
		}
		return w.admitClaim(f, p)
	}
	return drop.None
}

// admitClaim holds the frame against what the port was given; or, if nobody knows what the stations behind it
// have, against what others have. Whoever claims another one's address is reported.
func (w *worker) admitClaim(f *frame.Frame, p *wire.Parsed) (reason drop.Reason) {
	var claimed netip.Addr
	if g := w.in.guard.Load(); g != nil {
		reason, claimed = g.check(f.Bytes(), p)
	} else if p.Kind == wire.KindARP || p.ND {
		reason, claimed = w.contest(f, p)
	}
	if claimed.IsValid() {
		w.tell(event{in: w.in, vni: f.VNI, claimed: claimed})
	}
	return reason
}

// contest refuses to let a port speak for an address that is known to be behind another (RFC 5227 section 2.4:
// the first one defends it). Probes go on, to be answered.
func (w *worker) contest(f *frame.Frame, p *wire.Parsed) (drop.Reason, netip.Addr) {
	c, finding := neigh.ReadClaim(f.Bytes(), p)
	if finding != neigh.Claimed || c.Probe {
		return drop.None, netip.Addr{}
	}
	owner, known := w.sw.neighbors.Lookup(f.VNI, c.Addr)
	switch {
	case !known || owner.Port == w.in.id:
		return drop.None, netip.Addr{}
	case p.ND:
		return drop.SpoofedND, c.Addr
	}
	return drop.SpoofedARP, c.Addr
}

// learn asks the slow worker to learn the frame's source when the FDB doesn't have it there. It returns
// false when the source is known for good to be elsewhere.
func (w *worker) learn(f *frame.Frame, peer uint32) (ok bool) {
	src := wire.Ethernet(f.Bytes()).Src()
	if w.learned == (learnCache{true, f.VNI, src, peer}) {
		return true
	}
	dest := port.Dest{Port: w.in.id, Peer: peer}
	switch w.sw.fdb.Seen(w.now, f.VNI, src, dest) {
	case fdb.Known:
		w.learned = learnCache{true, f.VNI, src, peer}
	case fdb.NeedsLearn:
		w.tell(event{in: w.in, vni: f.VNI, mac: src, dest: dest})
	case fdb.StaticElsewhere:
		return false
	}
	return true
}

// tell puts an event into the slow worker's queue. What doesn't fit is forgotten: the next frame brings
// another.
func (w *worker) tell(e event) {
	if !admit(&w.in.quota.events, eventsPerPort) {
		return
	}
	select {
	case w.sw.slow.events <- e:
	default:
		w.in.quota.events.Add(-1)
	}
}

func (s *slowWorker) note(e event) {
	if e.claimed.IsValid() {
		s.noteClaim(e)
	} else if s.sw.snapshot.Load().port(e.in.id) == e.in {
		s.noteStation(e)
	}
	e.in.quota.events.Add(-1)
}

// noteStation changes the table. A static entry wins over what is seen, so a pod can't take over another
// one's MAC.
func (s *slowWorker) noteStation(e event) {
	switch outcome, was := s.sw.fdb.Learn(s.now, e.vni, e.mac, e.dest); outcome {
	case fdb.Moved:
		s.sw.log.Debug("station moved", "mac", e.mac, "vni", e.vni, "from", s.sw.nameOf(was.Port), "to", e.in.port.Name())
	case fdb.Froze:
		s.sw.log.Warn("a station keeps moving between two ports: a loop, or two stations with one MAC; it stays where it is for now",
			"mac", e.mac, "vni", e.vni, "from", s.sw.nameOf(was.Port), "to", e.in.port.Name(), "for", fdb.FreezeTime)
	}
}

// claimEvery is how often the same claim is reported.
const claimEvery = int64(60e9)

// noteClaim reports that a port used an address that is another station's, by both names. Of an address that
// nobody has, the counter tells enough.
func (s *slowWorker) noteClaim(e event) {
	owner, known := s.sw.neighbors.Lookup(e.vni, e.claimed)
	if !known || owner.Port == e.in.id || s.now-e.in.claimed < claimEvery {
		return
	}
	e.in.claimed = s.now
	s.sw.log.Warn("a second station claims an address; its frames are dropped (spoofed_arp, spoofed_nd, spoofed_ip)",
		"address", e.claimed, "owner", s.sw.nameOf(owner.Port), "claimed by", e.in.port.Name())
}
