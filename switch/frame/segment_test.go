package frame_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/bench/seed"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// segments collects all segments of f, or returns nil if Start refuses.
func segments(t testing.TB, f *frame.Frame) [][]byte {
	t.Helper()
	var s frame.Segmenter
	if !s.Start(f) {
		return nil
	}
	hdr := make([]byte, frame.MaxHeaderLen)
	var all [][]byte
	for {
		n, payload, ok := s.Next(hdr)
		if !ok {
			return all
		}
		all = append(all, append(bytes.Clone(hdr[:n]), payload...))
	}
}

// randomSizes fills in gso and payload so that all cases of the last segment's length occur.
func randomSizes(r *rand.Rand, s spec) spec {
	s.gso = 1 + r.IntN(1460)
	full := 1 + r.IntN(44)
	switch r.IntN(4) {
	case 0:
		s.payload = full * s.gso // the last is as long as the others
	case 1:
		s.payload = (full-1)*s.gso + 1
	case 2:
		s.payload = 1 + r.IntN(s.gso) // one segment
	default:
		s.payload = 1 + r.IntN(full*s.gso)
	}
	return s
}

// Each segment, decoded by gopacket, must carry its share of the payload under the headers of the
// super-frame with the fields that RFC 9293, 3168 and 768 change; re-encoded by gopacket, it must have the
// same lengths and checksums.
func TestSegmentsAgainstGopacket(t *testing.T) {
	r := seed.Rand(t)
	rounds := 60
	if testing.Short() {
		rounds = 8
	}
	p := frame.NewPool(1, frame.DefaultArena)
	for range rounds {
		for _, kind := range kinds {
			s := randomSizes(r, kind)
			f := s.build(t, r, p)
			before := bytes.Clone(f.Bytes())
			got := segments(t, f)
			if len(got) != f.Wire() {
				t.Fatalf("%v: %d segments, WireFrames says %d", s, len(got), f.Wire())
			}
			checkSegments(t, s, f, got)
			if !bytes.Equal(f.Bytes(), before) {
				t.Fatalf("%v: the super-frame was changed", s)
			}
			f.Release()
		}
	}
}

func checkSegments(t *testing.T, s spec, f *frame.Frame, got [][]byte) {
	t.Helper()
	super := decode(t, f.Bytes())
	var payload []byte
	for i, b := range got {
		p := decode(t, b)
		last := i == len(got)-1
		if len(p.payload) != s.gso && !last || len(p.payload) > s.gso {
			t.Fatalf("%v: segment %d has %d bytes of payload", s, i, len(p.payload))
		}
		if p.tcp != nil {
			want := *super.tcp
			want.Seq += uint32(len(payload))
			want.FIN, want.PSH, want.CWR = want.FIN && last, want.PSH && last, want.CWR && i == 0
			if p.tcp.Seq != want.Seq || p.tcp.FIN != want.FIN || p.tcp.PSH != want.PSH || p.tcp.CWR != want.CWR ||
				p.tcp.ECE != want.ECE || p.tcp.ACK != want.ACK {
				t.Fatalf("%v: segment %d of %d: %+v, want %+v", s, i, len(got), p.tcp, want)
			}
		}
		if p.ip4 != nil && p.ip4.Id != super.ip4.Id+uint16(i) {
			t.Fatalf("%v: segment %d has identification %d, the super-frame %d", s, i, p.ip4.Id, super.ip4.Id)
		}
		if want := p.encode(t); !bytes.Equal(b, want) && !udpZero(p.udp, f, b, want) {
			t.Fatalf("%v: segment %d of %d\n got %x\nwant %x", s, i, len(got), b, want)
		}
		payload = append(payload, p.payload...)
	}
	if !bytes.Equal(payload, super.payload) {
		t.Fatalf("%v: the segments' payloads are not the super-frame's", s)
	}
}

// udpZero says whether ours and gopacket's differ only in how a UDP checksum of 0 is sent; gopacket does
// not map it to 0xffff.
func udpZero(udp *layers.UDP, f *frame.Frame, ours, theirs []byte) bool {
	at := f.CsumStart + wire.UDPChecksumOffset
	if udp == nil || binary.BigEndian.Uint16(ours[at:]) != 0xffff || binary.BigEndian.Uint16(theirs[at:]) != 0 {
		return false
	}
	fixed := bytes.Clone(theirs)
	binary.BigEndian.PutUint16(fixed[at:], 0xffff)
	return bytes.Equal(ours, fixed)
}

// decoded is a frame as gopacket sees it.
type decoded struct {
	list    []gopacket.SerializableLayer // without the payload
	ip4     *layers.IPv4
	tcp     *layers.TCP
	udp     *layers.UDP
	payload []byte
}

func decode(t testing.TB, b []byte) (d decoded) {
	t.Helper()
	var network gopacket.NetworkLayer
	for _, l := range gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default).Layers() {
		switch l := l.(type) {
		case *layers.IPv4:
			d.ip4, network = l, l
		case *layers.IPv6:
			network = l
		case *layers.TCP:
			d.tcp, d.payload = l, l.Payload
			l.SetNetworkLayerForChecksum(network)
		case *layers.UDP:
			d.udp, d.payload = l, l.Payload
			l.SetNetworkLayerForChecksum(network)
		}
		d.list = append(d.list, l.(gopacket.SerializableLayer))
		if d.tcp != nil || d.udp != nil {
			return d
		}
	}
	t.Fatalf("gopacket finds no TCP or UDP in %x", b)
	return d
}

func (d decoded) encode(t testing.TB) []byte { return serialize(t, d.list, d.payload) }

func TestUDPSegmentChecksumZeroIsSentAsOnes(t *testing.T) {
	r := seed.Rand(t)
	p := frame.NewPool(1, frame.DefaultArena)
	f := spec{name: "udp4", udp: true, gso: 100, payload: 300}.build(t, r, p)
	// A word of payload that was 0 takes over what the checksum was, so that the new one is 0.
	word := f.Bytes()[f.HdrLen+102:][:2]
	clear(word)
	copy(word, segments(t, f)[1][f.CsumStart+f.CsumOffset:][:2])
	got := segments(t, f)[1]
	if sum := binary.BigEndian.Uint16(got[f.CsumStart+f.CsumOffset:]); sum != 0xffff {
		t.Errorf("checksum 0x%04x, want 0xffff", sum)
	}
	if want := decode(t, got).encode(t); want[f.CsumStart+f.CsumOffset] != 0 {
		t.Errorf("the test's payload doesn't lead to a checksum of 0: %x", want)
	}
}

// Metadata that don't fit the bytes must be refused, not cut: a segment would lie about itself.
func TestStartRefuses(t *testing.T) {
	r := seed.Rand(t)
	p := frame.NewPool(1, frame.DefaultArena)
	tcp4 := spec{gso: 1000, payload: 2999}
	tcp6 := spec{v6: true, gso: 1000, payload: 2999}
	udp4 := spec{udp: true, gso: 1000, payload: 2999}
	udp6 := spec{udp: true, v6: true, gso: 1000, payload: 2999}
	for name, test := range map[string]struct {
		spec
		spoil func(f *frame.Frame)
	}{
		"no GSO":                {tcp4, func(f *frame.Frame) { f.GSOType = wire.GSONone }},
		"UDP fragmentation":     {udp4, func(f *frame.Frame) { f.GSOType = 3 }},
		"IPv4 as IPv6":          {tcp4, func(f *frame.Frame) { f.GSOType = wire.GSOTCPv6 }},
		"IPv6 as IPv4":          {tcp6, func(f *frame.Frame) { f.GSOType = wire.GSOTCPv4 }},
		"size 0":                {tcp4, func(f *frame.Frame) { f.GSOSize = 0 }},
		"complete checksum":     {tcp4, func(f *frame.Frame) { f.NeedsCsum = false }},
		"TCP, checksum of UDP":  {tcp4, func(f *frame.Frame) { f.CsumOffset = wire.UDPChecksumOffset }},
		"UDP, checksum of TCP":  {udp4, func(f *frame.Frame) { f.CsumOffset = wire.TCPChecksumOffset }},
		"TCP headers too short": {tcp4, func(f *frame.Frame) { f.HdrLen-- }},
		"TCP headers too long":  {tcp6, func(f *frame.Frame) { f.HdrLen++ }},
		"UDP headers too short": {udp4, func(f *frame.Frame) { f.HdrLen-- }},
		"UDP headers too long":  {udp4, func(f *frame.Frame) { f.HdrLen++ }},
		"headers beyond":        {tcp4, func(f *frame.Frame) { f.HdrLen = 65535 }},
		"L4 before L3":          {tcp4, func(f *frame.Frame) { f.CsumStart = 10 }},
		"L4 inside IPv6":        {udp6, func(f *frame.Frame) { f.CsumStart, f.HdrLen = f.CsumStart-8, f.HdrLen-8 }},
		"L4 behind headers":     {tcp4, func(f *frame.Frame) { f.CsumStart = f.HdrLen + 1 }},
		"not IP":                {tcp4, func(f *frame.Frame) { f.Bytes()[12] = 0x88 }},
		"IPv4 packet shorter":   {tcp4, func(f *frame.Frame) { f.Bytes()[17]-- }},
		"IPv6 packet shorter":   {tcp6, func(f *frame.Frame) { f.Bytes()[19]-- }},
		"IPv4 header longer":    {tcp4, func(f *frame.Frame) { f.Bytes()[14] = 0x46 }},
		"TCP data offset":       {tcp4, func(f *frame.Frame) { f.Bytes()[f.CsumStart+12] = 0xf0 }},
	} {
		f := test.build(t, r, p)
		test.spoil(f)
		if got := segments(t, f); got != nil {
			t.Errorf("%s: %d segments, want none", name, len(got))
		}
		f.Release()
	}
	short := commit(t, p, make([]byte, wire.EthernetLen-1))
	short.Meta = frame.Meta{GSOType: wire.GSOUDPL4, GSOSize: 1, NeedsCsum: true, CsumOffset: wire.UDPChecksumOffset, HdrLen: wire.UDPLen}
	if got := segments(t, short); got != nil {
		t.Errorf("a frame shorter than an Ethernet header: %d segments", len(got))
	}
}

// AppendTo must survive both a full burst and an empty pool without losing or repeating a segment.
func TestAppendToResumes(t *testing.T) {
	r := seed.Rand(t)
	const small = 5 // frames of the pool that the segments go to
	source := frame.NewPool(1, frame.DefaultArena)
	f := spec{gso: 300, payload: 300*(frame.BurstSize+3) + 1}.build(t, r, source)
	want := segments(t, f)
	for name, p := range map[string]*frame.Pool{
		"burst full": frame.NewPool(2*frame.BurstSize, frame.DefaultArena),
		"no frames":  frame.NewPool(small, frame.DefaultArena),
		"no arena":   frame.NewPool(frame.BurstSize, small*400),
	} {
		var s frame.Segmenter
		s.Start(f)
		var got [][]byte
		for more := true; more; {
			var out frame.Burst
			more = s.AppendTo(&out, p)
			if out.Len() == 0 {
				t.Fatalf("%s: no progress behind %d segments", name, len(got))
			}
			for _, segment := range out.Frames() {
				plain := frame.Meta{In: f.In, VNI: f.VNI, Peer: f.Peer, Hash: f.Hash}
				if segment.Meta != plain {
					t.Fatalf("%s: metadata %+v, want %+v", name, segment.Meta, plain)
				}
				got = append(got, bytes.Clone(segment.Bytes()))
			}
			out.Release()
		}
		if len(got) != len(want) {
			t.Fatalf("%s: %d segments, want %d", name, len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("%s: segment %d differs", name, i)
			}
		}
		if p.Live() != 0 {
			t.Errorf("%s: %d frames live", name, p.Live())
		}
	}
}

// Ethernet padding isn't covered by the checksum, whatever is in it.
func TestCompleteChecksum(t *testing.T) {
	r := seed.Rand(t)
	p := frame.NewPool(2, frame.DefaultArena)
	for _, s := range kinds {
		s.payload = r.IntN(100)
		f := s.build(t, r, p)
		padded := commit(t, p, append(bytes.Clone(f.Bytes()), 0xde, 0xad, 0xbe))
		padded.Meta = f.Meta
		want := decode(t, f.Bytes()).encode(t)
		if !frame.CompleteChecksum(padded) || padded.NeedsCsum {
			t.Fatalf("%v: refused, or metadata left: %+v", s, padded.Meta)
		}
		if got := padded.Bytes()[:len(want)]; !bytes.Equal(got, want) {
			t.Errorf("%v\n got %x\nwant %x", s, got, want)
		}
		f.CsumStart = uint16(f.Len()) - f.CsumOffset - 1
		before := bytes.Clone(f.Bytes())
		if frame.CompleteChecksum(f) || !f.NeedsCsum || !bytes.Equal(before, f.Bytes()) {
			t.Errorf("%v: a checksum field half behind the packet was written", s)
		}
		f.Release()
		padded.Release()
	}
}

func TestSegmenterDoesNotAllocate(t *testing.T) {
	r := seed.Rand(t)
	source, p := frame.NewPool(1, frame.DefaultArena), frame.NewPool(frame.BurstSize, frame.DefaultArena)
	f := spec{gso: 1448, payload: 40 * 1448}.build(t, r, source)
	var s frame.Segmenter
	var out frame.Burst
	n := testing.AllocsPerRun(100, func() {
		s.Start(f)
		s.AppendTo(&out, p)
		out.Release()
	})
	if n != 0 {
		t.Errorf("%v allocations per super-frame", n)
	}
}

func FuzzSegment(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	p := frame.NewPool(1, frame.DefaultArena)
	for _, s := range kinds {
		s.gso, s.payload = 100, 250
		super := s.build(f, r, p)
		f.Add(super.Bytes(), super.GSOType, super.NeedsCsum, super.HdrLen, super.GSOSize, super.CsumStart, super.CsumOffset)
		super.Release()
	}
	f.Fuzz(func(t *testing.T, b []byte, gsoType uint8, needsCsum bool, hdrLen, gsoSize, csumStart, csumOffset uint16) {
		if len(b) > frame.MaxLen {
			return
		}
		super := commit(t, p, b)
		defer super.Release()
		super.GSOType, super.NeedsCsum, super.HdrLen, super.GSOSize = gsoType, needsCsum, hdrLen, gsoSize
		super.CsumStart, super.CsumOffset = csumStart, csumOffset
		n := 0
		payload := 0
		for _, segment := range segments(t, super) {
			var parsed wire.Parsed
			if len(segment) > int(hdrLen)+int(gsoSize) {
				t.Fatalf("a segment of %d bytes: headers %d, size %d", len(segment), hdrLen, gsoSize)
			}
			// What the headers say of lengths must be true for whatever the bytes were.
			if fault := wire.Parse(segment, false, &parsed); fault == wire.FaultNone && int(parsed.End) != len(segment) {
				t.Fatalf("a segment of %d bytes says that it ends at %d", len(segment), parsed.End)
			}
			payload += len(segment) - int(hdrLen)
			n++
		}
		if n > 0 && (n != super.Wire() || payload != len(b)-int(hdrLen)) {
			t.Fatalf("%d segments with %d bytes of payload, want %d with %d", n, payload, super.Wire(), len(b)-int(hdrLen))
		}
		frame.CompleteChecksum(super)
	})
}

func BenchmarkSegment(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, s := range []spec{
		{name: "tcp4/1448", gso: 1448, payload: 44 * 1448},
		{name: "tcp4/100", gso: 100, payload: 64000},
		{name: "udp6/1200", v6: true, udp: true, gso: 1200, payload: 50 * 1200},
	} {
		b.Run(s.name, func(b *testing.B) {
			f := s.build(b, r, frame.NewPool(1, frame.DefaultArena))
			hdr := make([]byte, frame.MaxHeaderLen)
			b.SetBytes(int64(f.Len()))
			for b.Loop() {
				var seg frame.Segmenter
				seg.Start(f)
				for ok := true; ok; {
					_, _, ok = seg.Next(hdr)
				}
			}
		})
	}
}
