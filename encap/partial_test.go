package encap

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"tapyard/bench/seed"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// slicesOf returns a message's datagrams, of size bytes but the last, written without package code. body is the offload
// header and the frame.
func slicesOf(flags byte, message uint16, body []byte, size int) (all [][]byte) {
	last := (len(body) - 1) / (size - 8)
	stream := append(make([]byte, 8), body[:10]...)
	stream = append(stream, make([]byte, 8*last)...)
	stream = append(stream, body[10:]...)
	for i := 0; i <= last; i++ {
		if i > 0 {
			copy(stream[18+8*(i-1):][:8], stream[i*size:])
		}
		copy(stream[i*size:], []byte{flags, byte(message >> 8), byte(message), byte(i), 0, 0, 42, byte(last)})
	}
	for i := 0; i <= last; i++ {
		all = append(all, bytes.Clone(stream[i*size:min(len(stream), (i+1)*size)]))
	}
	return all
}

// bodyOf returns what a message holds for a frame without offloads.
func bodyOf(b []byte) []byte { return append(make([]byte, 10), b...) }

// Messages of more sources than a queue has places for: those used last are kept, and each is put together from its own
// slices, in whatever order the sources send.
func TestPartialsAreBounded(t *testing.T) {
	tunnel, peers, ns := loopbackTunnel(t)
	must(t, peers.Set([]Peer{{Name: "self", Underlay: tunnel.cfg.Local}}))
	const sources = maxPartials + 4
	var conns [sources]*net.UDPConn
	ns.Do(t, func() {
		for i := range conns {
			conns[i] = strangerTo(t, tunnel.cfg.Local, tunnel.cfg.Local)
		}
	})
	in := newReceiver(tunnel)
	body := func(i int) []byte { return bodyOf(bytes.Repeat([]byte{byte(i)}, 300)) }
	write := func(i, slice int) {
		_, err := conns[i].Write(slicesOf(0x51, 7, body(i), 118)[slice]) // 110 B in each
		must(t, err)
	}
	for slice := range 2 {
		for i := range maxPartials {
			write(i, slice)
		}
	}
	if all := in.some(t); len(all) != 0 {
		t.Fatalf("%d frames of incomplete messages", len(all))
	}
	for i := maxPartials; i < sources; i++ {
		write(i, 0) // the first four lose their place
	}
	for i := range 4 {
		write(i, 2) // and with this nobody else does: it is a stray, which only leaves a trace
	}
	for i := 8; i < maxPartials; i++ {
		write(i, 2)
	}
	for i, got := range in.receive(t, maxPartials-8) {
		if want := body(i + 8)[10:]; !bytes.Equal(got.bytes, want) || got.vni != 42 {
			t.Errorf("source %d: %d bytes %.8x..., VNI %d", i+8, len(got.bytes), got.bytes, got.vni)
		}
	}
	// Evicted: two slices each of 4 sources, then of the 4 whose places the strays took. 4 strays.
	requireDrops(t, &in.st, map[drop.Reason]counted{drop.SliceLost: {20, 20}})
	if link := peers.Lookup(1).link; link.rxLost.Load() != 12 || link.rxWhole.Load() != maxPartials-8 {
		t.Errorf("%d messages lost, %d whole", link.rxLost.Load(), link.rxWhole.Load())
	}
}

// With slices that the underlay loses, the others of their message are dropped and counted, and nothing else is; the next
// message arrives.
func TestSlicesLost(t *testing.T) {
	r := seed.Rand(t)
	a, b := newUnderlay(t, "IPv4")
	a.open(t, 1)
	b.open(t, 1)
	a.slicing(1472)
	out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
	dropped := uint64(0)
	for i, index := range []string{"0", "3", "5-6", "0-4", "6"} {
		nft(t, b, "add table ip lossy", "add chain ip lossy pre { type filter hook prerouting priority 0; }",
			"add rule ip lossy pre udp dport 4789 @th,64,8 0x51 @th,88,8 "+index+" drop")
		bytes, m := udpFrame(5000, randomBytes(r, 10000), 1000) // 7 slices
		small, smallMeta := udpFrame(5000, randomBytes(r, 500), 0)
		for range 3 {
			out.add(t, bytes).Meta = m
			out.add(t, small).Meta = smallMeta
		}
		out.send(t)
		receiveSent(t, in, [][]sent{{{small, smallMeta}, {small, smallMeta}, {small, smallMeta}}})
		dropped += 3 * []uint64{6, 6, 5, 2, 0}[i]
		nft(t, b, "delete table ip lossy")
		out.add(t, bytes).Meta = m // the last slice lost: only this shows it, with six slices each of three messages
		out.send(t)
		receiveSent(t, in, [][]sent{{{bytes, m}}})
		if i == 4 {
			dropped += 3 * 6
		}
		requireDrops(t, &in.st, map[drop.Reason]counted{drop.SliceLost: {dropped, dropped}})
		if got := b.peers.Lookup(1).link.rxLost.Load(); got != uint32(3*(i+1)) {
			t.Errorf("slices %s: %d messages counted as lost in all, want %d", index, got, 3*(i+1))
		}
	}
}

// Any datagrams, at once or one after the other, are the messages that a slow reader makes of them.
func FuzzSlices(f *testing.F) {
	peers := &VTEPTable{}
	peer := netip.MustParseAddr("10.0.0.1")
	must(f, peers.Set([]Peer{{Name: "peer", Underlay: peer}}))
	q := newRxQueue(-1, peers)
	p := frame.NewPool(frame.BurstSize, frame.DefaultArena)
	body := bodyOf([]byte("a frame that is a little longer than a slice of it"))
	var three []byte
	for _, s := range slicesOf(0x51, 1, body, 34) {
		three = append(three, s...)
	}
	f.Add(three, uint8(34), uint8(0), uint8(0), uint16(0))
	f.Add(three, uint8(34), uint8(0), uint8(3), uint16(34)) // as expected
	f.Add(three, uint8(34), uint8(1), uint8(0), uint16(34))
	f.Add(three, uint8(34), uint8(0), uint8(0), uint16(26)) // rather longer
	f.Add(three, uint8(34), uint8(2), uint8(3), uint16(0))
	f.Add(append(bytes.Clone(three), three...), uint8(34), uint8(1), uint8(0), uint16(0))
	f.Add(three[34:], uint8(34), uint8(0), uint8(0), uint16(0))
	test := bodyOf(make([]byte, 20))
	putOffload(test, &testMeta)
	fillTest(test[10:], 5, 1)
	f.Add(slicesOf(0x52, 1, test, 60)[0], uint8(60), uint8(0), uint8(0), uint16(0))
	for _, b := range ecnFrames(f) {
		f.Add(slicesOf(0x51, 9, bodyOf(b), 255)[0], uint8(255), uint8(0), uint8(3), uint16(0))
	}
	h, greeting := hello{asks: true, session: 1, echo: 2}, make([]byte, helloLen)
	h.encode(greeting)
	f.Add(greeting, uint8(helloLen), uint8(0), uint8(0), uint16(0))
	f.Fuzz(func(t *testing.T, message []byte, size, cut, tos uint8, prefix uint16) {
		if size = max(size, 1); len(message) == 0 {
			t.Skip("FuzzDecap has it")
		}
		for _, d := range datagramsOf(message, int(size)) {
			if wire.VXLAN(d).IsValid() || isBundle(d) {
				t.Skip("FuzzDecap or FuzzBundles has it")
			}
		}
		at := min(int(cut)*int(size), len(message))
		q.partials = partials{}
		link := newLink()
		peers.load().bySource[peer].link = link
		var st port.Stats
		var got []sent
		for _, part := range [][]byte{message[:at], message[at:]} {
			if len(part) == 0 {
				continue
			}
			q.from[0].encode(netip.AddrPortFrom(peer, 61000))
			var n int
			q.control[0], n = receivedWith(false, tos, uint16(size))
			q.msgs[0].Hdr.SetControllen(n)
			q.msgs[0].Len = uint32(len(part))
			q.direct.prefix = int(prefix)
			for done := false; !done; {
				var b frame.Burst
				switch {
				case q.next < q.got:
				case q.direct.prefix == 0:
					copy(q.slots[0], part)
					q.next, q.got = 0, 1
					q.open()
				default: // the kernel fills one buffer after the other
					q.next, q.got = 0, 0
					room := p.Reserve(0, slotLen)
					q.settle(&b, p, &st, room[:copy(room, part[copy(q.slots[0][:prefix], part):])])
				}
				done = q.deliver(&b, p, &st)
				q.finish(&b)
				for _, f := range b.Frames() {
					got = append(got, sent{bytes.Clone(f.Bytes()), f.Meta})
				}
				b.Release()
			}
		}
		want, drops := modelSlices(datagramsOf(message, int(size)), tos)
		if q.partials.open == 1 {
			drops[drop.SliceLost] = counted{drops[drop.SliceLost].frames - uint64(q.partials.list[q.partials.last].slices), 0}
		}
		for r := range drops {
			drops[r] = counted{drops[r].frames, drops[r].frames}
		}
		for r := drop.None; r < drop.Count; r++ {
			if g := tally(&st.Drops[r]); g != drops[r] {
				t.Errorf("drops of %v: %+v, want %+v", r, g, drops[r])
			}
		}
		if len(got) != len(want) || int(link.rxWhole.Load()) != len(want) {
			t.Fatalf("%d frames, %d counted, want %d", len(got), link.rxWhole.Load(), len(want))
		}
		for i := range got {
			if !bytes.Equal(got[i].bytes, want[i].bytes) || got[i].meta != want[i].meta {
				t.Fatalf("frame %d of %d\n got %x %+v\nwant %x %+v", i, len(got), got[i].bytes, got[i].meta, want[i].bytes, want[i].meta)
			}
		}
	})
}

// modelSlices is the format read aloud: README.md. Slices of a message without end count as dropped.
func modelSlices(datagrams [][]byte, tos uint8) (frames []sent, drops map[drop.Reason]counted) {
	drops = map[drop.Reason]counted{}
	lose := func(r drop.Reason, n int) {
		if n > 0 {
			drops[r] = counted{drops[r].frames + uint64(n), 0}
		}
	}
	var parts [][]byte // of the message at hand
	for _, d := range datagrams {
		if len(d) == helloLen && d[0] == 0x54 && d[1] == 1 {
			continue
		}
		if len(d) < 9 || d[0] != 0x51 && d[0] != 0x52 || d[3] > d[7] || d[3] == 0 && len(d) < 18+8*int(d[7]) {
			lose(drop.NotVXLAN, 1)
			continue
		}
		goesOn := len(parts) > 0 && (len(d) == len(parts[0]) || d[3] == d[7] && len(d) < len(parts[0])) && int(d[3]) == len(parts) && bytes.Equal(d[:3], parts[0][:3]) && bytes.Equal(d[4:8], parts[0][4:8])
		if !goesOn {
			lose(drop.SliceLost, len(parts))
			parts = nil
		}
		if !goesOn && d[3] != 0 {
			lose(drop.SliceLost, 1)
			continue
		}
		if parts = append(parts, d); d[3] < d[7] {
			continue
		}
		stream := bytes.Join(parts, nil)
		for i := 1; i < len(parts); i++ {
			copy(stream[i*len(parts[0]):], stream[10+8*i:][:8])
		}
		body := stream[8:]
		inner, reason := modelECN(tos, stream[18+8*(len(parts)-1):])
		switch {
		case d[0] == 0x52:
		case reason != drop.None:
			lose(reason, len(parts))
		default:
			word := func(at int) uint16 { return binary.LittleEndian.Uint16(body[at:]) }
			frames = append(frames, sent{inner, frame.Meta{VNI: binary.BigEndian.Uint32(d[4:]) >> 8, Peer: 1, NeedsCsum: body[0]&1 != 0,
				GSOType: body[1], HdrLen: word(2), GSOSize: word(4), CsumStart: word(6), CsumOffset: word(8)}})
		}
		parts = nil
	}
	lose(drop.SliceLost, len(parts))
	return frames, drops
}
