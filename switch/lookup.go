package vswitch

import (
	"net/netip"

	"tapyard/fib"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Verdict is the outcome of lookup for one frame.
type Verdict uint8

// The verdicts; Drop is the zero value and comes with a reason.
const (
	Drop Verdict = iota
	Forward
	Route // Forward after the Adjacency's rewrite
	Flood
	Fragment // Route in fragments
	Punt
)

// verdict is what lookup tells act about a frame.
type verdict struct {
	kind   Verdict
	reason drop.Reason
	punt   puntKind
	dest   port.Dest
	net    *network
	adj    *Adjacency
}

// routing collects the frames of a burst that want a route, so that the FIB is asked once per family.
type routing struct {
	index4, index6 [frame.BurstSize]uint8
	keys4          [frame.BurstSize]uint32
	keys6          [frame.BurstSize]fib.Key6
	hops           [frame.BurstSize]fib.NextHop
	n4, n6         int
}

// lookup is the third stage: it decides about every frame and changes none.
func (w *worker) lookup() {
	if w.in.sent != nil {
		w.police()
	}
	var net *network
	for i, f := range w.burst.Frames() {
		if w.verdicts[i].reason != drop.None {
			continue
		}
		if net == nil || net.VNI != f.VNI {
			w.routing.finish(w, net)
			if net = w.snap.network(f.VNI); net == nil {
				w.verdicts[i].reason = drop.UnknownVNI
				continue
			}
		}
		w.verdicts[i].net = net
		w.classify(i, f, net)
	}
	w.routing.finish(w, net)
	if w.snap.flows != nil {
		w.track()
	}
}

// classify decides about one frame by its MAC addresses, or queues it for routing.
func (w *worker) classify(i int, f *frame.Frame, net *network) {
	v, p := &w.verdicts[i], &w.parsed[i]
	if v.reason = w.admit(f, p, net); v.reason != drop.None {
		return
	}
	dst := wire.Ethernet(f.Bytes()).Dst()
	switch {
	case p.Kind == wire.KindARP || p.ND:
		w.classifyNeighbor(v, f, p, dst)
	case dst == net.RouterMAC && net.routes():
		v.reason = w.routing.add(i, p)
	default:
		w.classifyL2(v, f, dst)
	}
}

// classifyL2 forwards within the VNI. Only access ports are part of its L2 segment, and of a stretched one
// the peers.
func (w *worker) classifyL2(v *verdict, f *frame.Frame, dst wire.MAC) {
	stretches := w.in.role == RoleTunnel && v.net.Stretched
	if w.in.role != RoleAccess && w.in.role != roleLocal && !stretches {
		v.reason = drop.NotForRouter
		return
	}
	if dst.IsReserved() {
		v.reason = drop.ReservedMulticast
		return
	}
	if dest, known := w.sw.fdb.Lookup(v.net.VNI, dst); known {
		v.kind, v.dest = Forward, dest
		switch {
		case dest.Port == w.in.id && stretches:
			v.kind, v.reason = Drop, drop.SplitHorizon
		case dest.Port == w.in.id:
			v.kind, v.reason = Drop, drop.Hairpin
		}
		return
	}
	v.kind = Flood
	if !w.in.limits[w.id].takeBUM(w.now, f.Peer, f.Wire()) {
		v.kind, v.reason = Drop, drop.BUMLimit
	}
}

// classifyNeighbor has the slow path answer requests for addresses that the switch knows, unless they are
// behind the asking port, whose owner is probing for itself (RFC 5227), and take what is for the prober. All else is
// L2's.
func (w *worker) classifyNeighbor(v *verdict, f *frame.Frame, p *wire.Parsed, dst wire.MAC) {
	if dst == proberMAC && w.in.role == RoleAccess {
		v.kind, v.punt = Punt, puntProber
		return
	}
	if target, asks := requested(f.Bytes(), p); asks && w.in.role == RoleAccess {
		if n, known := w.sw.neighbors.Lookup(v.net.VNI, target); known && n.Port != w.in.id {
			v.kind, v.punt = Punt, puntNeighbor
			return
		}
	}
	if dst == v.net.RouterMAC && v.net.routes() {
		v.reason = drop.LocalUnhandled
		return
	}
	w.classifyL2(v, f, dst)
}

// requested returns the address that an ARP request or a neighbour solicitation asks for. One that the
// slow path's copy would cut short, with over 1.4 kB of options, asks for nothing.
func requested(b []byte, p *wire.Parsed) (target netip.Addr, asks bool) {
	if int(p.End) > puntCopy {
		return target, false
	}
	if p.Kind == wire.KindARP {
		arp := wire.ARP(b[p.L3:p.End])
		return arp.TargetIP(), arp.Op() == wire.ARPRequest
	}
	ns := wire.NeighborSolicit(b[p.L4:p.End])
	if !ns.IsValid() {
		return target, false
	}
	return ns.Target(), true
}

// add queues a packet for the FIB, or says why it can't be routed.
func (r *routing) add(i int, p *wire.Parsed) drop.Reason {
	switch p.Kind {
	case wire.KindIPv4:
		if martian4(p.Src[0]) {
			return drop.MartianSource
		}
		r.keys4[r.n4] = be32(p.Dst[:])
		r.index4[r.n4] = uint8(i)
		r.n4++
	case wire.KindIPv6:
		if martian6(be64(p.Src[:8]), be64(p.Src[8:])) {
			return drop.MartianSource
		}
		r.keys6[r.n6] = fib.Key6{Hi: be64(p.Dst[:8]), Lo: be64(p.Dst[8:])}
		r.index6[r.n6] = uint8(i)
		r.n6++
	default:
		return drop.NotIP
	}
	return drop.None
}

// martian4 says of a source's first byte that no router forwards it: 0/8, 127/8, and groups and reserved
// addresses from 224 on (RFC 1812 section 5.3.7).
func martian4(first byte) bool { return first == 0 || first == 127 || first >= 224 }

// martian6 is the same for IPv6: ::, ::1, fe80::/10, which never leaves its link, and ff00::/8 (RFC 4291
// sections 2.5.2 to 2.7).
func martian6(hi, lo uint64) bool {
	return hi == 0 && lo <= 1 || hi>>54 == 0xfe80>>6 || hi>>56 == 0xff
}

// finish looks up what was collected, which is of one VNI, in one View. The adjacencies are loaded after
// the FIB was asked: an index is published only when its adjacency is there.
func (r *routing) finish(w *worker, net *network) {
	if r.n4+r.n6 == 0 {
		return
	}
	view := net.fib.View()
	view.Lookup4Batch(r.keys4[:r.n4], r.hops[:r.n4])
	w.resolve(r.index4[:r.n4], r.hops[:])
	view.Lookup6Batch(r.keys6[:r.n6], r.hops[:r.n6])
	w.resolve(r.index6[:r.n6], r.hops[:])
	r.n4, r.n6 = 0, 0
}

func (w *worker) resolve(index []uint8, hops []fib.NextHop) {
	adjacencies := w.sw.adjacencies.view()
	frames := w.burst.Frames()
	for n, i := range index {
		w.decide(&w.verdicts[i], frames[i], &w.parsed[i], &adjacencies[hops[n]])
	}
}

// decideTooBig has the sender told, unless the packet is one that a router has to fragment.
func (v *verdict) decideTooBig(f *frame.Frame, p *wire.Parsed) {
	v.punt = puntTooBig
	if p.Kind == wire.KindIPv4 && fragmentable(f.Bytes()[p.L3:], v.adj.MTU) && !f.IsSuper() {
		v.kind, v.dest = Fragment, v.adj.Dest
	}
}

// decide turns an adjacency into a verdict. Entry 0 of the adjacencies, which is what a missing route
// gives, is of the kind NoRoute.
func (w *worker) decide(v *verdict, f *frame.Frame, p *wire.Parsed, adj *Adjacency) {
	v.kind, v.adj = Punt, adj
	switch {
	case adj.Kind == AdjLocal:
		v.punt = puntLocal
	case adj.Kind == AdjNoRoute:
		v.punt = puntNoRoute
	case adj.Kind == AdjNoNeighbor:
		v.punt = puntNoNeighbor
	case p.TTL <= 1 && w.in.id != port.Local && !adj.Own:
		v.punt = puntTTL
	case adj.Dest.Port == w.in.id && w.in.role == RoleHost:
		v.kind, v.reason = Drop, drop.HostLoop
	case w.in.role == RoleTunnel && adj.Tunnel:
		v.kind, v.reason = Drop, drop.SplitHorizon
	case f.SegmentLen(int(p.End)) > int(adj.MTU):
		v.decideTooBig(f, p)
	default:
		v.kind, v.dest = Route, adj.Dest
	}
}
