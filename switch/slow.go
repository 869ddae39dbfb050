package vswitch

import (
	"net/netip"
	"sync/atomic"
	"time"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/neigh"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// puntKind says what the slow path is to do with a frame.
type puntKind uint8

const (
	_              puntKind = iota
	puntNeighbor            // answer the ARP request or neighbour solicitation
	puntLocal               // addressed to the switch itself
	puntTTL                 // answer time exceeded
	puntNoRoute             // answer unreachable: no route
	puntNoNeighbor          // answer unreachable: no such host
	puntTooBig              // answer fragmentation needed, packet too big
	puntProber              // addressed to the prober, see Probe
)

const (
	// punts is how many frames may wait for the slow path. It takes some 2 µs for one, so a full queue
	// is 2 ms of work.
	punts = 1024
	// puntsPerPort is one port's share: a flood from a pod fills an eighth of the queue.
	puntsPerPort = punts / 8
	// events and eventsPerPort are the same for learning.
	events, eventsPerPort = 1024, 128
	// puntCopy is how much of a frame is kept: ICMPv6 errors quote at most 1,232 bytes of packet
	// (RFC 4443 section 2.4 c), and echo requests are answered up to an Ethernet MTU of 1,500.
	puntCopy = 1536
)

// punt is a frame on its way to the slow path, copied.
type punt struct {
	kind   puntKind
	vni    uint32
	peer   uint32 // that it came from
	mtu    uint16 // of the way out, with puntTooBig
	in     *portState
	wire   int // wire frames that it stands for
	whole  bool
	parsed wire.Parsed
	n      int
	buf    [puntCopy]byte
}

func (p *punt) bytes() []byte { return p.buf[:p.n] }

// puntQuota counts what a port has in the queues. Workers and the slow worker change it, hence atomics.
type puntQuota struct{ frames, events atomic.Int32 }

func (q *puntQuota) empty() bool { return q.frames.Load() == 0 && q.events.Load() == 0 }

// admit takes one of limit places, or says no.
func admit(n *atomic.Int32, limit int32) bool {
	if n.Add(1) > limit {
		n.Add(-1)
		return false
	}
	return true
}

// puntFrame copies the frame into the slow path's queue and gives the original back. Whatever the queue
// doesn't take is dropped and counted.
func (w *worker) puntFrame(f *frame.Frame, p *wire.Parsed, v *verdict) {
	if !w.in.limits[w.id].punt.take(w.now, 1) || !admit(&w.in.quota.frames, puntsPerPort) {
		w.drop(f, drop.PuntFull)
		return
	}
	select {
	case item := <-w.sw.slow.free:
		item.kind, item.vni, item.peer, item.in, item.wire, item.parsed = v.punt, f.VNI, f.Peer, w.in, f.Wire(), *p
		if v.adj != nil {
			item.mtu = v.adj.MTU
		}
		item.n = copy(item.buf[:], f.Bytes())
		item.whole = item.n == f.Len() && !f.NeedsCsum
		w.sw.slow.frames <- item // as many places as items: never blocks
		f.Release()
	default:
		w.in.quota.frames.Add(-1)
		w.drop(f, drop.PuntFull)
	}
}

// slowWorker answers what the workers don't: learning, ARP and ND, ICMP. It has the stages of a worker for
// the frames that it makes, and its own index everywhere.
type slowWorker struct {
	*worker
	frames   chan *punt
	free     chan *punt
	events   chan event
	arrivals chan arrival
	proofs   chan chan<- struct{} // of Prove
	stopping chan struct{}
	prober
}

func newSlowWorker(sw *Switch, id int) *slowWorker {
	s := &slowWorker{
		worker: newWorker(sw, id),
		frames: make(chan *punt, punts), free: make(chan *punt, punts),
		events: make(chan event, events), arrivals: make(chan arrival, arrivals), proofs: make(chan chan<- struct{}), stopping: make(chan struct{}),
		prober: newProber(),
	}
	for range punts {
		s.free <- new(punt)
	}
	return s
}

func (s *slowWorker) run() {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		select {
		case e := <-s.events:
			s.begin()
			s.note(e)
		case p := <-s.frames:
			s.handle(p)
		case a := <-s.arrivals:
			s.announce(a)
		case done := <-s.proofs:
			close(done)
		case q := <-s.asks:
			s.ask(q)
		case <-second.C:
			s.begin()
			s.sw.fdb.Expire(s.now)
			if s.snap.flows != nil {
				s.snap.flows.Expire(s.now)
			}
		case <-s.stopping:
			s.finish()
			return
		}
	}
}

// finish works off what the workers, which have ended, left behind.
func (s *slowWorker) finish() {
	s.drain()
	s.reader.Close()
}

// drain works until both queues are empty.
func (s *slowWorker) drain() {
	for {
		select {
		case e := <-s.events:
			s.begin()
			s.note(e)
		case p := <-s.frames:
			s.handle(p)
		case a := <-s.arrivals:
			s.announce(a)
		case q := <-s.asks:
			s.ask(q)
		default:
			return
		}
	}
}

// begin sets what an item of work sees of the switch and of time.
func (s *slowWorker) begin() {
	s.snap = s.sw.snapshot.Load()
	s.now = s.sw.now().UnixNano()
}

func (s *slowWorker) handle(p *punt) {
	s.reader.Online()
	s.begin()
	st := &p.in.stats[s.id]
	reason := drop.None
	switch net := s.snap.network(p.vni); {
	case net == nil:
		reason = drop.UnknownVNI
	case p.kind == puntNeighbor:
		s.answerNeighbor(p)
	case p.kind == puntProber:
		reason = s.takeAnswer(p)
	case p.kind == puntLocal:
		reason = s.answerEcho(net, p)
	case p.kind == puntTTL:
		reason = drop.TTLExceeded
		s.icmpError(net, p, timeExceeded)
	case p.kind == puntNoNeighbor:
		reason = drop.NoNeighbor
		s.icmpError(net, p, hostUnreachable)
	case p.kind == puntTooBig:
		reason = drop.TooBig
		s.icmpError(net, p, tooBig)
	default:
		reason = drop.NoRoute
		s.icmpError(net, p, netUnreachable)
	}
	if reason == drop.None {
		st.Consumed.Add(1, uint64(p.wire))
	} else {
		st.Drop(reason, p.wire, p.bytes(), &frame.Meta{VNI: p.vni, Peer: p.peer})
	}
	s.live.Store(int64(s.pool.Live()))
	s.reader.Offline()
	p.in.quota.frames.Add(-1)
	p.in = nil
	s.free <- p
}

// answerNeighbor answers for a station behind another port, or for the switch's own addresses.
func (s *slowWorker) answerNeighbor(p *punt) {
	target, _ := requested(p.bytes(), &p.parsed)
	n, known := s.sw.neighbors.Lookup(p.vni, target)
	if !known { // detached since the punt
		return
	}
	s.originate(puntCopy, func(out []byte) int {
		if p.parsed.Kind == wire.KindARP {
			return neigh.AnswerARP(wire.ARP(p.bytes()[p.parsed.L3:]), n.MAC, out)
		}
		return neigh.AnswerND(p.bytes(), &p.parsed, n.MAC, n.Port == port.Local, out)
	}, func(f *frame.Frame) { s.sendOut(f, p.vni, p.in.id) })
}

// originate builds a frame of at most size bytes with build, which returns its length or 0 for none, and
// hands it to send.
func (s *slowWorker) originate(size int, build func([]byte) int, send func(*frame.Frame)) {
	buf := s.pool.Reserve(0, size)
	if buf == nil {
		return // can't be: the pool is empty between two items
	}
	if n := build(buf); n > 0 {
		send(s.pool.Commit(n))
	}
}

// sendOut sends a finished frame out of a port of a VNI.
func (s *slowWorker) sendOut(f *frame.Frame, vni uint32, id port.ID) {
	f.VNI = vni
	s.snap.ports[port.Local].stats[s.id].Originated.Add(1, 1)
	s.in = s.snap.ports[port.Local]
	s.st = &s.in.stats[s.id]
	s.forward(f, port.Dest{Port: id})
	s.send()
}

// arrivals is how many stations may wait for their announcement: a node's pods at its start.
const arrivals = 1024

// arrival is a station that was attached or moved here.
type arrival struct {
	vni  uint32
	port port.ID
	mac  wire.MAC
	addr netip.Addr
}

// announce tells the VNI where an address is now, because others may remember the station that had it
// before (RFC 5227 section 2.3, RFC 4861 section 7.2.6), or have asked in vain while the agent was being
// restarted: they would ask again a second later. Loss is unlikely between ports in memory, and a stale entry
// mends itself, so once is enough.
func (s *slowWorker) announce(a arrival) {
	s.reader.Online()
	defer s.reader.Offline()
	s.begin()
	net, at := s.snap.network(a.vni), s.snap.port(a.port)
	if n, known := s.sw.neighbors.Lookup(a.vni, a.addr); !known || n != (neigh.Neighbor{MAC: a.mac, Port: a.port}) {
		return // it has left since; the port's ID may be another one's
	}
	if net == nil || at == nil {
		return
	}
	others := len(net.flood) + len(net.peers)
	if at.role == RoleAccess {
		others--
	}
	if others == 0 {
		return
	}
	s.originate(puntCopy, func(out []byte) int {
		if a.addr.Is4() {
			return neigh.Announce4(a.addr, a.mac, out)
		}
		return neigh.Announce6(a.addr, a.mac, a.port == port.Local, out)
	}, func(f *frame.Frame) {
		f.VNI = a.vni
		// As if from the station's own port, which then doesn't get it: a host logs whoever claims its address.
		s.in = at
		s.st = &s.snap.ports[port.Local].stats[s.id]
		s.st.Originated.Add(1, 1)
		s.flood(f, &wire.Parsed{}, net)
		s.send()
	})
	s.live.Store(int64(s.pool.Live()))
}
