package vswitch

import (
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Read RFC 791 section 3.2 and RFC 1812 section 5.2.6 first.

// fragmentable says whether a router has to fragment the packet (RFC 1812 section 5.2.6): IPv4 without DF. One
// that ends behind the longest packet, which no host puts together, isn't: the offsets of its fragments would
// begin at 0 again. Neither is one whose header leaves no room for the least fragment, 8 bytes.
func fragmentable(ip wire.IPv4, mtu uint16) bool {
	return !ip.DontFragment() && ip.FragmentOffset()+int(ip.TotalLen()) <= 65535 && int(mtu) >= ip.HeaderLen()+8
}

// fragment sends a routed IPv4 packet without DF, which is larger than the way out takes, in fragments, at
// once: they have no place in the worker's arena. Senders look for the path's MTU nowadays, so this is rare.
func (w *worker) fragment(f *frame.Frame, p *wire.Parsed, v *verdict) {
	ps := w.snap.port(v.dest.Port)
	if ps == nil {
		w.drop(f, drop.PortGone)
		return
	}
	if ps.received != nil && ps.received.admit(w.now, []*frame.Frame{f}) == 0 {
		w.drop(f, drop.BandwidthIngress)
		return
	}
	if f.NeedsCsum {
		frame.CompleteChecksum(f)
	}
	w.send() // what came before stays before
	room := (int(v.adj.MTU) - wire.IPv4(f.Bytes()[p.L3:]).HeaderLen()) &^ 7
	part, pool := &w.segs.part, w.segs.pool
	n := 0
	for at := int(p.L4); at < int(p.End); at += room {
		if part.Full() {
			sendParts(ps.tx[w.id], part)
		}
		size := min(room, int(p.End)-at)
		frag := pool.Commit(fragmentOf(f.Bytes(), p, at, size, pool.Reserve(0, int(p.L4)+size))) // the longest packet fits
		frag.Hash, frag.Peer, frag.VNI, frag.In = f.Hash, v.dest.Peer, f.VNI, f.In
		part.Append(frag)
		n++
	}
	w.st.Split.Add(uint64(n-1), uint64(n-1))
	f.Release()
	sendParts(ps.tx[w.id], part)
}

// sendParts sends frames that only this burst holds.
func sendParts(tx port.TxQueue, b *frame.Burst) {
	tx.Send(b)
	tx.Flush()
	b.Release()
}

// fragmentOf writes the fragment of packet b with the n bytes from at into out and returns its length.
func fragmentOf(b []byte, p *wire.Parsed, at, n int, out []byte) int {
	copy(out, b[:p.L4])
	copy(out[p.L4:], b[at:at+n])
	ip, whole := wire.IPv4(out[p.L3:]), wire.IPv4(b[p.L3:])
	offset := whole.FragmentOffset() + at - int(p.L4)
	ip.SetTotalLen(uint16(ip.HeaderLen() + n))
	ip.SetFragment(offset, at+n < int(p.End) || whole.MoreFragments())
	if at > int(p.L4) {
		ip.DropUncopiedOptions()
	}
	ip.UpdateChecksum()
	return int(p.L4) + n
}
