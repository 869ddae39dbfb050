package vswitch

import (
	"encoding/binary"
	"math/bits"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// act is the fourth stage: it carries out the verdicts, rewrites what is routed, and groups the frames by
// the port that they leave through.
func (w *worker) act() {
	for i, f := range w.burst.Frames() {
		v := &w.verdicts[i]
		switch v.kind {
		case Forward:
			if v.net.Stretched {
				f.Hash = flowHash(&w.parsed[i])
			}
			w.forward(f, v.dest)
		case Route:
			w.rewrite(f, &w.parsed[i], v)
			w.forward(f, v.dest)
		case Flood:
			w.flood(f, &w.parsed[i], v.net)
		case Fragment:
			w.rewrite(f, &w.parsed[i], v)
			w.fragment(f, &w.parsed[i], v)
		case Punt:
			w.puntFrame(f, &w.parsed[i], v)
		default:
			w.drop(f, v.reason)
		}
	}
}

func (w *worker) drop(f *frame.Frame, r drop.Reason) {
	w.st.Drop(r, f.Wire(), f.Bytes(), &f.Meta)
	w.dropped++
	f.Release()
}

// forward queues the frame at its way out.
func (w *worker) forward(f *frame.Frame, d port.Dest) {
	ps := w.snap.port(d.Port)
	if ps == nil {
		w.drop(f, drop.PortGone)
		return
	}
	f.Peer = d.Peer
	w.enqueue(ps, f)
}

// enqueue adds the frame to what the burst sends to the port. A burst that floods to many peers may fill
// the tunnel's.
func (w *worker) enqueue(ps *portState, f *frame.Frame) {
	if w.out.full(ps) {
		w.send()
	}
	w.out.add(ps, f)
}

// rewrite makes the frame what the next station expects: RFC 1812 section 5.3.1 for the TTL, which
// frames that the switch made or that end on this node keep.
func (w *worker) rewrite(f *frame.Frame, p *wire.Parsed, v *verdict) {
	b := f.Bytes()
	eth := wire.Ethernet(b)
	eth.SetDst(v.adj.DstMAC)
	eth.SetSrc(v.adj.SrcMAC)
	if v.adj.Tunnel {
		f.Hash = flowHash(p)
	}
	if w.in.id == port.Local || v.adj.Own {
		return
	}
	if p.Kind == wire.KindIPv4 {
		wire.IPv4(b[p.L3:]).DecrementTTL()
	} else {
		wire.IPv6(b[p.L3:]).DecrementHopLimit()
	}
}

// flood sends the frame to every other access port of the VNI, and of a stretched one to every peer, unless
// it came from one (split horizon). The copies share its bytes, so a partial checksum is completed first: a
// port without that offload would have to do it in all of them.
func (w *worker) flood(f *frame.Frame, p *wire.Parsed, net *network) {
	if f.NeedsCsum && !f.IsSuper() {
		frame.CompleteChecksum(f)
	}
	f.Hash = flowHash(p)
	var last *portState
	var lastPeer uint32
	target := func(ps *portState, peer uint32) {
		if last != nil {
			w.copyTo(f, last, lastPeer)
		}
		last, lastPeer = ps, peer
	}
	for _, ps := range net.flood {
		if ps.id != w.in.id {
			target(ps, 0)
		}
	}
	if net.tunnel != nil && w.in.role != RoleTunnel {
		for _, peer := range net.peers {
			target(net.tunnel, peer)
		}
	}
	if last == nil {
		w.drop(f, drop.NoFloodTarget)
		return
	}
	f.Peer = lastPeer
	w.enqueue(last, f) // the last one takes the frame itself
}

// copyTo sends a clone. When the pool has none left, sending gives back what this burst has cloned so far.
func (w *worker) copyTo(f *frame.Frame, ps *portState, peer uint32) {
	c := f.Clone()
	if c == nil {
		w.send()
		c = f.Clone()
	}
	w.st.Copied.Add(1, uint64(f.Wire()))
	if c == nil {
		w.st.Drop(drop.NoBuffer, f.Wire(), f.Bytes(), &f.Meta)
		return
	}
	c.Peer = peer
	w.enqueue(ps, c)
}

// flowHash is equal for all packets of a flow and direction; all fragments of a packet count as one flow
// without ports. The multipliers are the 64-bit golden ratio and another odd constant: they only have
// to spread bits, the result picks one of a few source sockets.
func flowHash(p *wire.Parsed) uint32 {
	h := uint64(p.Proto) ^ 0x9e3779b97f4a7c15
	if !p.Fragment {
		h ^= uint64(p.SrcPort)<<32 | uint64(p.DstPort)<<48
	}
	for _, word := range [4]uint64{le64(p.Src[:8]), le64(p.Src[8:]), le64(p.Dst[:8]), le64(p.Dst[8:])} {
		hi, lo := bits.Mul64(h^word, 0xd6e8feb86659fd93)
		h = hi ^ lo ^ 0x9e3779b97f4a7c15
	}
	return uint32(h ^ h>>32)
}

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
