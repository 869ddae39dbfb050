package encap

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// What isn't from a peer or no VXLAN is counted and lets the next datagram through.
func TestRecvDrops(t *testing.T) {
	tunnel, peers, ns := loopbackTunnel(t)
	peer := netip.MustParseAddr("127.0.0.2")
	must(t, peers.Set([]Peer{{Name: "peer", Underlay: peer}}))
	ns.Do(t, func() {
		from, stranger := strangerTo(t, peer, tunnel.cfg.Local), strangerTo(t, netip.MustParseAddr("127.0.0.3"), tunnel.cfg.Local)
		for _, datagram := range [][]byte{
			{},
			{0x08, 0, 0, 0, 0, 0, 42}, // a byte short
			{0x00, 0, 0, 0, 0, 0, 42, 0, 'n', 'o', ' ', 'I'}, // the VNI doesn't count
			vxlan(42, []byte("a frame")),
			vxlan(0xffffff, nil),
			{0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0xff, 'r'}, // reserved bits are ignored
			{0x88, 0x08, 0x12, 0x34, 0, 0, 2, 0, 'g'},    // a group policy, as from a device with "gbp"
			{0x0c, 0, 0, 3, 0, 0, 3, 0, 'e'},             // VXLAN-GPE with Ethernet inside
			{0x80, 0, 0x12, 0x34, 0, 0, 2, 0, 'g'},       // a group policy without I
		} {
			_, err := from.Write(datagram)
			must(t, err)
		}
		_, err := stranger.Write(vxlan(42, []byte("not from a peer")))
		must(t, err)
	})
	in := newReceiver(tunnel)
	want := []received{{[]byte("a frame"), 42, 1, 0}, {nil, 0xffffff, 1, 0}, {[]byte("r"), 1, 1, 0},
		{[]byte("g"), 2, 1, 0}, {[]byte("e"), 3, 1, 0}}
	for i, got := range in.receive(t, len(want)) {
		if w := want[i]; !bytes.Equal(got.bytes, w.bytes) || got.vni != w.vni || got.peer != w.peer {
			t.Errorf("frame %d: %q, VNI %d, peer %d; want %q, VNI %d, peer %d", i, got.bytes, got.vni, got.peer, w.bytes, w.vni, w.peer)
		}
	}
	requireDrops(t, &in.st, map[drop.Reason]counted{drop.NotVXLAN: {4, 4}, drop.UnknownPeer: {1, 1}})
	if got := tally(&in.st.Rx); got != (counted{5, 5}) {
		t.Errorf("rx %+v of frames that Recv dropped, want 5", got)
	}
}

// The longest datagrams that UDP carries arrive whole: a vxlan device of the same host may send such.
func TestRecvLongest(t *testing.T) {
	for local, longest := range map[string]int{"127.0.0.1": 65507, "::1": 65527} {
		r := seed.Rand(t)
		nstest.New(t).Do(t, func() {
			addr, peers := netip.MustParseAddr(local), &VTEPTable{}
			must(t, peers.Set([]Peer{{Name: "self", Underlay: addr}}))
			tunnel := openTunnel(t, addr, 1, peers)
			inner := randomBytes(r, longest-8)
			from := strangerTo(t, addr, addr)
			for range 20 {
				_, err := from.Write(vxlan(7, inner))
				must(t, err)
			}
			in := newReceiver(tunnel)
			for _, got := range in.receive(t, 20) {
				if !bytes.Equal(got.bytes, inner) {
					t.Fatalf("%s: %d bytes arrived of a frame of %d", local, len(got.bytes), len(inner))
				}
			}
			requireDrops(t, &in.st, nil)
		})
	}
}

// When the pool or the burst is full, nothing that was received is lost or overtaken.
func TestRecvResumes(t *testing.T) {
	tunnel, peers, _ := loopbackTunnel(t)
	must(t, peers.Set([]Peer{{Name: "self", Underlay: tunnel.cfg.Local}}))
	out := newSender(tunnel, 0)
	const n = 3 * frame.BurstSize
	for i := range n {
		out.add(t, fmt.Appendf(nil, "frame %d", i))
		if out.b.Full() {
			out.send(t)
		}
	}
	q := tunnel.Rx()[0]
	var st port.Stats
	small, big := frame.NewPool(5, frame.DefaultArena), frame.NewPool(2*frame.BurstSize, frame.DefaultArena)
	next := 0
	for round := 0; next < n; round++ {
		p, already := small, 0
		if round%3 == 2 {
			p, already = big, frame.BurstSize-3
		}
		var b frame.Burst
		for range already {
			b.Append(p.Commit(copy(p.Reserve(0, 8), "from TAP")))
		}
		more := q.Recv(0, &b, p, &st)
		if !more && next+b.Len()-already < n {
			t.Fatalf("no more behind frame %d of %d", next+b.Len()-already, n)
		}
		if b.Len() == already {
			t.Fatalf("nothing behind frame %d of %d", next, n)
		}
		for _, f := range b.Frames()[already:] {
			if want := fmt.Sprintf("frame %d", next); string(f.Bytes()) != want {
				t.Fatalf("%q in the place of %q", f.Bytes(), want)
			}
			next++
		}
		b.Release()
	}
	requireDrops(t, &st, nil)
}

// A flood of invalid datagrams must not hold the worker: a Recv looks at one burst's worth.
func TestRecvIsBounded(t *testing.T) {
	tunnel, _, ns := loopbackTunnel(t)
	ns.Do(t, func() {
		from := strangerTo(t, tunnel.cfg.Local, tunnel.cfg.Local)
		for range 5 * frame.BurstSize {
			_, err := from.Write([]byte("junk"))
			must(t, err)
		}
	})
	in := newReceiver(tunnel)
	var b frame.Burst
	if more := tunnel.Rx()[0].Recv(0, &b, in.pool, &in.st); !more || b.Len() != 0 {
		t.Errorf("more %t, %d frames", more, b.Len())
	}
	requireDrops(t, &in.st, map[drop.Reason]counted{drop.NotVXLAN: {frame.BurstSize, frame.BurstSize}})
}

// Any message from anywhere is as many frames as there are datagrams in it, with the bytes behind each header, less
// those that are dropped. Frames may be joined to super-frames that stand for them.
func FuzzDecap(f *testing.F) {
	peers := &VTEPTable{}
	peer := netip.MustParseAddr("10.0.0.1")
	must(f, peers.Set([]Peer{{Name: "peer", Underlay: peer}}))
	q := newRxQueue(-1, peers)
	p := frame.NewPool(frame.BurstSize, frame.DefaultArena)
	f.Add(vxlan(4242, []byte("an inner frame")), true, false, uint8(0), uint16(0))
	f.Add(vxlan(4242, []byte("an inner frame")), false, false, uint8(0), uint16(9))
	f.Add([]byte{0x08}, true, true, uint8(3), uint16(0))
	for _, b := range ecnFrames(f) {
		for outer := range uint8(4) {
			f.Add(vxlan(4242, b), true, outer%2 == 0, 0xb8|outer, uint16(0))
			f.Add(vxlan(4242, b[:len(b)-9]), true, false, outer, uint16(0))
		}
	}
	for _, gso := range []int{1, 18, 33} {
		inner, m := udpFrame(5000, randomBytes(seed.Rand(f), 100), gso)
		var message []byte
		for _, b := range wireForm(f, inner, m) {
			message = append(message, vxlan(42, b)...)
		}
		f.Add(message, true, false, uint8(gso), uint16(8+14+20+8+gso))
	}
	f.Fuzz(func(t *testing.T, message []byte, fromPeer, v6 bool, tos uint8, size uint16) {
		from := netip.MustParseAddr("10.0.0.2")
		if fromPeer {
			from = peer
		}
		q.from[0].encode(netip.AddrPortFrom(from, 61000))
		q.msgs[0].Len = uint32(copy(q.slots[0], message))
		if holdsTrain(q.slots[0][:q.msgs[0].Len], int(size)) {
			t.Skip("TestKernelLeavesOffloadsPending has it")
		}
		for _, d := range datagramsOf(message, int(size)) {
			if fromPeer && (isHello(d) || isBundle(d) || sliceHeaderOf(d) != 0) {
				t.Skip("FuzzSlices or FuzzBundles has it")
			}
		}
		var n int
		q.control[0], n = receivedWith(v6, tos, size)
		q.msgs[0].Hdr.SetControllen(n)
		q.next, q.got = 0, 1
		q.open()
		var st port.Stats
		want, drops := modelDecap(message, fromPeer, tos, int(size))
		var got [][]byte
		for done := false; !done; {
			var b frame.Burst
			done = q.deliver(&b, p, &st)
			q.finish(&b)
			for _, f := range b.Frames() {
				if f.Peer != 1 {
					t.Fatalf("peer %d", f.Peer)
				}
				got = append(got, wireForm(t, f.Bytes(), f.Meta)...)
			}
			b.Release()
		}
		requireDrops(t, &st, drops)
		if len(got) != len(want) {
			t.Fatalf("%d frames, want %d", len(got), len(want))
		}
		for i := range got {
			if !bytes.Equal(unnumbered(got[i]), unnumbered(want[i])) {
				t.Fatalf("frame %d of %d\n got %x\nwant %x", i, len(got), got[i], want[i])
			}
		}
	})
}

// modelDecap is RFC 7348 and 6040 read aloud.
func modelDecap(message []byte, fromPeer bool, tos uint8, size int) (frames [][]byte, drops map[drop.Reason]counted) {
	drops = map[drop.Reason]counted{}
	for _, d := range datagramsOf(message, size) {
		reason := drop.None
		var inner []byte
		switch {
		case len(d) < 8 || d[0]&0x08 == 0:
			reason = drop.NotVXLAN
		case !fromPeer:
			reason = drop.UnknownPeer
		default:
			inner, reason = modelECN(tos, d[8:])
		}
		if reason != drop.None {
			drops[reason] = counted{drops[reason].frames + 1, drops[reason].wire + 1}
			continue
		}
		frames = append(frames, inner)
	}
	return frames, drops
}

// datagramsOf returns the datagrams of a message, each of size bytes but the last; 0 is one.
func datagramsOf(message []byte, size int) (datagrams [][]byte) {
	if size == 0 {
		size = max(1, len(message))
	}
	if len(message) == 0 {
		return [][]byte{nil}
	}
	for ; len(message) > 0; message = message[min(size, len(message)):] {
		datagrams = append(datagrams, message[:min(size, len(message))])
	}
	return datagrams
}

// unnumbered makes equal what may differ in packets with DF: the identification and the header checksum over it. A TCP
// checksum of 0xffff is the number 0.
func unnumbered(b []byte) []byte {
	b = bytes.Clone(b)
	var p wire.Parsed
	if wire.Parse(b, false, &p) != wire.FaultNone {
		return b
	}
	if ip := wire.IPv4(b[p.L3:]); p.Kind == wire.KindIPv4 && ip.DontFragment() && ip.ChecksumOK() {
		ip.SetID(0)
		ip.UpdateChecksum()
	}
	if p.Proto == wire.ProtoTCP && p.HasL4() && wire.TCP(b[p.L4:]).Checksum() == 0xffff {
		wire.TCP(b[p.L4:]).SetChecksum(0)
	}
	return b
}
