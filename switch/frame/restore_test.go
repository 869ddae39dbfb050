package frame_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"tapyard/bench/seed"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// restore does what the switch does with a frame from a tunnel; the frame's metadata are lost before.
func restore(t testing.TB, f *frame.Frame, mtu int) bool {
	t.Helper()
	f.Meta = frame.Meta{}
	var p wire.Parsed
	if fault := wire.Parse(f.Bytes(), false, &p); fault != wire.FaultNone {
		t.Fatalf("the test's frame is broken: %v", fault)
	}
	return frame.RestoreOffload(f, &p, mtu)
}

// A frame that lost its metadata gets those back that a TAP would have delivered, but for the size of the
// segments, which is now as large as the MTU allows.
func TestRestoreOffload(t *testing.T) {
	r := seed.Rand(t)
	pool := frame.NewPool(1, frame.DefaultArena)
	for _, s := range kinds {
		for _, s.payload = range []int{1, 500, 1379, 1380, 1381, 1400, 1460, 9000, 65000} {
			f := s.build(t, r, pool)
			want := f.Meta
			want.In, want.VNI, want.Peer, want.Hash, want.HdrLen = 0, 0, 0, 0, 0
			mtu := 1300 + r.IntN(200)
			hdrLen := f.Len() - s.payload
			if !s.udp && f.Len()-wire.EthernetLen > mtu {
				want.GSOType, want.HdrLen, want.GSOSize = s.gsoType(), uint16(hdrLen), uint16(mtu+wire.EthernetLen-hdrLen)
			}
			if s.options && f.CsumStart != wire.EthernetLen+wire.IPv4MinLen && f.CsumStart != wire.EthernetLen+wire.IPv6Len {
				want = frame.Meta{}
			}
			if got := restore(t, f, mtu); got != want.NeedsCsum || f.Meta != want {
				t.Errorf("%v, MTU %d: %t, %+v, want %+v", s, mtu, got, f.Meta, want)
			}
			f.Release()
		}
	}
}

// Without one of the conditions, the frame is left as it is.
func TestRestoreOffloadRefuses(t *testing.T) {
	r := seed.Rand(t)
	pool := frame.NewPool(1, frame.DefaultArena)
	tcp4, tcp6, udp4 := spec{payload: 3000}, spec{payload: 3000, v6: true}, spec{payload: 1000, udp: true}
	for name, test := range map[string]struct {
		spec
		spoil func(b []byte)
	}{
		"another checksum": {tcp6, func(b []byte) { b[wire.EthernetLen+wire.IPv6Len+wire.TCPChecksumOffset]++ }},
		"another address":  {tcp6, func(b []byte) { b[wire.EthernetLen+39]++ }},
		"another port is no matter of the pseudo header, but a length is": {udp4, func(b []byte) { b[wire.EthernetLen+wire.IPv4MinLen+5]-- }},
		"a first fragment": {tcp4, func(b []byte) { b[wire.EthernetLen+6] = 0x20; wire.IPv4(b[wire.EthernetLen:]).UpdateChecksum() }},
		"a later fragment": {tcp4, func(b []byte) { b[wire.EthernetLen+7] = 1; wire.IPv4(b[wire.EthernetLen:]).UpdateChecksum() }},
		"another protocol": {tcp4, func(b []byte) { b[wire.EthernetLen+9] = 132; wire.IPv4(b[wire.EthernetLen:]).UpdateChecksum() }},
		"not IP":           {tcp4, func(b []byte) { b[12] = 0x88 }},
	} {
		f := test.build(t, r, pool)
		test.spoil(f.Bytes())
		if restore(t, f, 1450) || f.Meta != (frame.Meta{}) {
			t.Errorf("%s: restored as %+v", name, f.Meta)
		}
		f.Release()
	}
}

// A packet that is longer than the MTU by Ethernet padding alone, or whose MTU has no room for a byte of
// payload, is no super-frame.
func TestRestoreOffloadMakesNoNonsense(t *testing.T) {
	r := seed.Rand(t)
	pool := frame.NewPool(2, frame.DefaultArena)
	f := spec{payload: 100}.build(t, r, pool)
	padded := commit(t, pool, append(bytes.Clone(f.Bytes()), make([]byte, 2000)...))
	if !restore(t, padded, 120) || padded.IsSuper() {
		t.Errorf("a padded frame was restored as %+v", padded.Meta)
	}
	for _, mtu := range []int{-1, 0, 40} {
		if !restore(t, f, mtu) || f.IsSuper() {
			t.Errorf("MTU %d: %+v", mtu, f.Meta)
		}
	}
	if !restore(t, f, 41) || f.Wire() != 100 {
		t.Errorf("MTU 41: %d segments of %+v", f.Wire(), f.Meta)
	}
}

// rightChecksum is gopacket's opinion about a whole TCP or UDP segment.
func rightChecksum(t testing.TB, b []byte) bool {
	t.Helper()
	d := decode(t, b)
	if d.tcp != nil {
		sum, err := d.tcp.ComputeChecksum() // over everything, the field included
		return err == nil && sum == 0
	}
	if d.udp.Checksum == 0 {
		return true
	}
	want := *d.udp
	encoded := serialize(t, append(d.list[:len(d.list)-1:len(d.list)-1], &want), d.payload)
	sum := binary.BigEndian.Uint16(encoded[len(encoded)-len(d.payload)-2:])
	return sum == d.udp.Checksum || sum == 0 && d.udp.Checksum == 0xffff
}

// plain says whether a frame that Parse accepts is of the kind that RestoreOffload speaks of.
func plain(p *wire.Parsed) bool {
	l3 := map[wire.Kind]int32{wire.KindIPv4: 20, wire.KindIPv6: 40}[p.Kind]
	return l3 != 0 && p.L4 == p.L3+l3 && !p.Fragment && (p.Proto == wire.ProtoTCP || p.Proto == wire.ProtoUDP)
}

// Whatever arrives, what goes on has right checksums if and only if what came had, or was partial: the
// switch doesn't launder damage.
func FuzzRestoreOffload(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	pool := frame.NewPool(1, frame.DefaultArena)
	for _, s := range kinds {
		for _, s.payload = range []int{0, 300, 5000} {
			built := s.build(f, r, pool)
			f.Add(built.Bytes(), uint16(1450), uint16(0))
			f.Add(built.Bytes(), uint16(100), uint16(3))
			frame.CompleteChecksum(built)
			f.Add(built.Bytes(), uint16(1450), uint16(0))
			f.Add(built.Bytes(), uint16(1450), uint16(1))
			built.Release()
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, mtu, damage uint16) {
		var p wire.Parsed
		if len(b) > frame.MaxLen || wire.Parse(b, false, &p) != wire.FaultNone || !plain(&p) {
			return
		}
		s := spec{v6: p.Kind == wire.KindIPv6, udp: p.Proto == wire.ProtoUDP}
		if s.udp && int(wire.UDP(b[p.L4:]).Length()) != int(p.End-p.L4) {
			return
		}
		in := commit(t, pool, b)
		defer in.Release()
		at := p.L4 + wire.TCPChecksumOffset
		if s.udp {
			at = p.L4 + wire.UDPChecksumOffset
		}
		field := in.Bytes()[at : at+2]
		binary.BigEndian.PutUint16(field, binary.BigEndian.Uint16(field)+damage)
		partial := binary.BigEndian.Uint16(field) == s.pseudoSum(in.Bytes()[p.L3:], int(p.End-p.L4))
		right := rightChecksum(t, in.Bytes()[:p.End])
		before := bytes.Clone(in.Bytes())
		if restored := restore(t, in, int(mtu)); restored != partial || restored != in.NeedsCsum || !bytes.Equal(before, in.Bytes()) {
			t.Fatalf("restored %t, partial %t, %+v", restored, partial, in.Meta)
		}
		for i, out := range onTheWire(t, in) {
			if got := rightChecksum(t, out); got != (partial || right) {
				t.Fatalf("frame %d has a right checksum: %t; what came was right: %t, partial: %t", i, got, right, partial)
			}
			if in.IsSuper() && len(out)-wire.EthernetLen > int(mtu) {
				t.Fatalf("frame %d has %d bytes, MTU %d", i, len(out), mtu)
			}
		}
	})
}

// onTheWire returns what the frame stands for, without Ethernet padding.
func onTheWire(t testing.TB, f *frame.Frame) [][]byte {
	t.Helper()
	if f.IsSuper() {
		all := segments(t, f)
		if len(all) == 0 {
			t.Fatalf("what was restored can't be cut: %+v", f.Meta)
		}
		return all
	}
	if f.NeedsCsum && !frame.CompleteChecksum(f) {
		t.Fatalf("what was restored can't be completed: %+v", f.Meta)
	}
	var p wire.Parsed
	wire.Parse(f.Bytes(), false, &p)
	return [][]byte{f.Bytes()[:p.End]}
}

func BenchmarkRestoreOffload(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, s := range []spec{{name: "tcp4 complete"}, {name: "tcp6 complete", v6: true}, {name: "tcp4 partial"}} {
		b.Run(s.name, func(b *testing.B) {
			s.payload = 1000
			f := s.build(b, r, frame.NewPool(1, frame.DefaultArena))
			if s.name != "tcp4 partial" {
				frame.CompleteChecksum(f)
			}
			var p wire.Parsed
			wire.Parse(f.Bytes(), false, &p)
			for b.Loop() {
				frame.RestoreOffload(f, &p, 1450)
			}
		})
	}
}
