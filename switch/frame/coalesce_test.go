package frame_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"tapyard/bench/seed"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// sent is a frame as a test gives it to a Coalescer.
type sent struct {
	bytes []byte
	meta  frame.Meta
}

// coalesced is what came out: the frames, and how often out had to be emptied because the pool was full.
type coalesced struct {
	frames []sent
	rounds int
}

// coalesce runs a burst through a Coalescer. Whatever is merged, no frame is lost, changed in place or leaked.
func coalesce(t testing.TB, c *frame.Coalescer, arena int, in []sent) (out coalesced) {
	t.Helper()
	room := 0
	for _, s := range in {
		room += frame.Headroom + len(s.bytes) + 15
	}
	from, to := frame.NewPool(frame.BurstSize, room), frame.NewPool(frame.BurstSize, arena)
	var b, part frame.Burst
	for _, s := range in {
		f := commit(t, from, s.bytes)
		f.Meta = s.meta
		b.Append(f)
	}
	saved := c.Start(&b)
	if saved == 0 {
		if b.Len() != len(in) {
			t.Fatalf("nothing to merge, and %d of %d frames left in the burst", b.Len(), len(in))
		}
		part, b = b, part
	}
	for more := saved > 0; more || part.Len() > 0; out.rounds++ {
		if more {
			more = c.AppendTo(&part, to)
		}
		if part.Len() == 0 {
			t.Fatal("AppendTo makes no progress with an empty pool")
		}
		for _, f := range part.Frames() {
			out.frames = append(out.frames, sent{bytes.Clone(f.Bytes()), f.Meta})
		}
		part.Release()
	}
	if len(out.frames) != len(in)-saved {
		t.Fatalf("%d frames of %d, Start said that %d are saved", len(out.frames), len(in), saved)
	}
	if from.Live() != 0 || to.Live() != 0 || b.Len() != 0 {
		t.Fatalf("%d and %d frames live, %d left in the burst", from.Live(), to.Live(), b.Len())
	}
	return out
}

// cut segments what came out, and completes the partial checksums of the others.
func (out *coalesced) cut(t testing.TB) (all [][]byte) {
	t.Helper()
	p := frame.NewPool(1, 2*frame.MaxLen)
	for _, s := range out.frames {
		f := commit(t, p, s.bytes)
		f.Meta = s.meta
		if f.IsSuper() {
			parts := segments(t, f)
			if len(parts) != f.Wire() || len(parts) == 0 {
				t.Fatalf("a super-frame of %d frames is cut into %d: %+v", f.Wire(), len(parts), f.Meta)
			}
			all = append(all, parts...)
		} else {
			all = append(all, final(t, s))
		}
		f.Release()
	}
	return all
}

// final is the frame with its checksum completed, as it would be on the wire.
func final(t testing.TB, s sent) []byte {
	t.Helper()
	f := commit(t, frame.NewPool(1, frame.Headroom+len(s.bytes)), s.bytes)
	f.Meta = s.meta
	if f.NeedsCsum {
		frame.CompleteChecksum(f)
	}
	return bytes.Clone(f.Bytes())
}

// unnumbered makes equal what may differ: the identification, with the header checksum over it, of an IPv4 packet
// with DF (which the kernel numbers anew), and a TCP checksum of 0xffff, which is the number 0.
func unnumbered(b []byte) []byte {
	b = bytes.Clone(b)
	var p wire.Parsed
	if wire.Parse(b, false, &p) != wire.FaultNone {
		return b
	}
	if p.Kind == wire.KindIPv4 && wire.IPv4(b[p.L3:]).DontFragment() && wire.IPv4(b[p.L3:]).ChecksumOK() {
		wire.IPv4(b[p.L3:]).SetID(0)
		wire.IPv4(b[p.L3:]).UpdateChecksum()
	}
	if p.Proto == wire.ProtoTCP && p.HasL4() && wire.TCP(b[p.L4:]).Checksum() == 0xffff {
		wire.TCP(b[p.L4:]).SetChecksum(0)
	}
	return b
}

// flowName tells flows apart by what Parse reads. What it finds no flow in is in the flow "", and a fragment in
// the flow "fragment", which is a part of all others.
func flowName(b []byte) string {
	var p wire.Parsed
	fault := wire.Parse(b, true, &p)
	if fault == wire.FaultNone && p.Fragment {
		return "fragment"
	}
	if fault != wire.FaultNone || !p.HasL4() || p.Proto != wire.ProtoTCP && p.Proto != wire.ProtoUDP {
		return ""
	}
	return fmt.Sprintf("%d %x %x %d %d", p.Proto, p.Src, p.Dst, p.SrcPort, p.DstPort)
}

// byFlow sorts frames into flows. A fragment is in all of them, at its place.
func byFlow(frames [][]byte) map[string][][]byte {
	flows := map[string][][]byte{}
	for _, b := range frames {
		flows[flowName(b)] = nil
	}
	for _, b := range frames {
		for flow, list := range flows {
			if name := flowName(b); name == flow || name == "fragment" && flow != "" {
				flows[flow] = append(list, unnumbered(b))
			}
		}
	}
	return flows
}

// checkCoalesced is the oracle: cut again, each flow's frames are what was given, byte for byte and in order.
func checkCoalesced(t testing.TB, in []sent, out coalesced) {
	t.Helper()
	given := coalesced{frames: in}
	want, got := byFlow(given.cut(t)), byFlow(out.cut(t))
	for flow := range want {
		if len(got[flow]) != len(want[flow]) {
			t.Fatalf("flow %q: %d frames, want %d", flow, len(got[flow]), len(want[flow]))
		}
		for i := range want[flow] {
			if !bytes.Equal(got[flow][i], want[flow][i]) {
				t.Fatalf("flow %q, frame %d of %d\n got %x\nwant %x", flow, i, len(want[flow]), got[flow][i], want[flow][i])
			}
		}
	}
	for _, s := range out.frames {
		if s.meta.IsSuper() && len(s.bytes) > frame.MaxLen {
			t.Fatalf("a super-frame of %d bytes", len(s.bytes))
		}
	}
}

// stream makes the frames of one flow.
type stream struct {
	v6, udp, fragmentable, partial, timestamps bool
	port                                       uint16
	id                                         uint16
	seq                                        uint32
}

// next is a frame with a payload of that size, its checksums right.
func (s *stream) next(r *rand.Rand, size int) sent {
	return s.make(randomBytes(r, size), wire.TCPAck)
}

func (s *stream) make(payload []byte, flags uint8) sent {
	l3, hdr, proto := wire.IPv4MinLen, wire.UDPLen, wire.ProtoUDP
	if s.v6 {
		l3 = wire.IPv6Len
	}
	if !s.udp {
		hdr, proto = wire.TCPMinLen, wire.ProtoTCP
		if s.timestamps {
			hdr += 12
		}
	}
	l4 := wire.EthernetLen + l3
	b := make([]byte, l4+hdr+len(payload))
	copy(b[l4+hdr:], payload)
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: dstMAC, Src: srcMAC, EtherType: wire.EtherTypeIPv4})
	ip := b[wire.EthernetLen:]
	if s.v6 {
		wire.Ethernet(b).SetEtherType(wire.EtherTypeIPv6)
		ip[0], ip[6], ip[7], ip[8], ip[23], ip[24], ip[39] = 0x60, proto, 64, 0xfd, 1, 0xfd, 2
		wire.IPv6(ip).SetPayloadLen(uint16(len(ip) - l3))
	} else {
		ip[0], ip[8], ip[9] = 0x45, 64, proto
		copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
		if !s.fragmentable {
			ip[6] = 0x40
		}
		wire.IPv4(ip).SetID(s.id)
		wire.IPv4(ip).SetTotalLen(uint16(len(ip)))
		wire.IPv4(ip).UpdateChecksum()
	}
	segment := b[l4:]
	binary.BigEndian.PutUint16(segment, s.port)
	binary.BigEndian.PutUint16(segment[2:], 53)
	if s.udp {
		wire.UDP(segment).SetLength(uint16(len(segment)))
	} else {
		tcp := wire.TCP(segment)
		tcp.SetSeq(s.seq)
		tcp.SetAck(77)
		tcp.SetWindow(500)
		tcp.SetFlags(flags)
		tcp[12] = byte(hdr/4) << 4
		if s.timestamps {
			copy(tcp[wire.TCPMinLen:], []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8})
		}
	}
	s.id++
	s.seq += uint32(len(payload))
	f := sent{b, frame.Meta{In: 7, VNI: 9}}
	f.sum(s.partial)
	return f
}

// sum writes the L4 checksum, or its partial form, anew.
func (f *sent) sum(partial bool) {
	l4, offset := wire.EthernetLen+wire.IPv4MinLen, uint16(wire.TCPChecksumOffset)
	v6 := wire.Ethernet(f.bytes).EtherType() == wire.EtherTypeIPv6
	proto := f.bytes[wire.EthernetLen+9]
	if v6 {
		l4, proto = wire.EthernetLen+wire.IPv6Len, f.bytes[wire.EthernetLen+6]
	}
	if proto == wire.ProtoUDP {
		offset = wire.UDPChecksumOffset
	}
	segment := f.bytes[l4:]
	pseudo := wire.PseudoHeader(f.bytes[wire.EthernetLen:], v6, proto, len(segment))
	field := segment[offset:]
	binary.BigEndian.PutUint16(field, 0)
	if partial {
		f.meta.NeedsCsum, f.meta.CsumStart, f.meta.CsumOffset = true, uint16(l4), offset
		binary.BigEndian.PutUint16(field, wire.Fold(pseudo))
		return
	}
	sum := wire.Checksum(segment, pseudo)
	if sum == 0 && proto == wire.ProtoUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}

// sums is sum, and IPv4's header checksum.
func (f *sent) sums() {
	if wire.Ethernet(f.bytes).EtherType() == wire.EtherTypeIPv4 {
		wire.IPv4(f.bytes[wire.EthernetLen:]).UpdateChecksum()
	}
	f.sum(f.meta.NeedsCsum)
}

var streams = map[string]stream{
	"udp4": {udp: true}, "udp6": {udp: true, v6: true}, "tcp4": {seq: 0xffff_ff00}, "tcp6": {v6: true},
	"udp4 partial": {udp: true, partial: true}, "tcp6 partial": {v6: true, partial: true, timestamps: true},
	"tcp4 timestamps": {timestamps: true}, "udp4 fragmentable": {udp: true, fragmentable: true, id: 0xffff},
}

// wires returns how many wire frames each frame that came out stands for.
func (out *coalesced) wires() (n []int) {
	for _, s := range out.frames {
		n = append(n, s.meta.WireFrames(len(s.bytes)))
	}
	return n
}

func TestCoalesceTrain(t *testing.T) {
	r := seed.Rand(t)
	for name, s := range streams {
		var in []sent
		for range 9 {
			in = append(in, s.next(r, 100))
		}
		in = append(in, s.next(r, 99), s.next(r, 100), s.next(r, 101), s.next(r, 100))
		out := coalesce(t, new(frame.Coalescer), frame.DefaultArena, in)
		checkCoalesced(t, in, out)
		if want := []int{10, 1, 2}; !slices.Equal(out.wires(), want) {
			t.Errorf("%s: %v wire frames, want %v: a shorter frame is the last, a longer one none", name, out.wires(), want)
		}
		if m := out.frames[0].meta; m.In != 7 || m.VNI != 9 || m.GSOSize != 100 {
			t.Errorf("%s: metadata %+v", name, m)
		}
	}
}

// rules spoil the second of three frames, so that it may not be merged with its neighbours. apart are the wire frames
// that each frame stands for which comes out, if they are not 1, 1 and 1.
var rules = []struct {
	name  string
	of    string
	spoil func(f *sent)
	apart []int
}{
	{"source MAC", "udp4", func(f *sent) { f.bytes[11] ^= 1 }, nil},
	{"destination MAC", "udp6", func(f *sent) { f.bytes[5] ^= 1 }, nil},
	{"class of service", "udp4", func(f *sent) { f.bytes[15] = 0xb8; f.sums() }, nil},
	{"ECN", "tcp4", func(f *sent) { f.bytes[15] = 3; f.sums() }, nil},
	{"TTL", "tcp4", func(f *sent) { f.bytes[22]--; f.sums() }, nil},
	{"DF", "udp4", func(f *sent) { f.bytes[20] = 0; f.sums() }, nil},
	{"identification without DF", "udp4 fragmentable", func(f *sent) { f.bytes[18] ^= 1; f.sums() }, nil},
	{"IPv4 header checksum", "udp4", func(f *sent) { f.bytes[24] ^= 1 }, nil},
	{"traffic class", "udp6", func(f *sent) { f.bytes[14] |= 1 }, nil},
	{"ECN of IPv6", "udp6", func(f *sent) { f.bytes[15] |= 0x30 }, nil},
	{"flow label", "tcp6", func(f *sent) { f.bytes[17] = 1 }, nil},
	{"hop limit", "tcp6", func(f *sent) { f.bytes[21]-- }, nil},
	{"padding", "udp4", func(f *sent) { f.bytes = append(f.bytes, 0) }, nil},
	{"padding of IPv6", "tcp6", func(f *sent) { f.bytes = append(f.bytes, 0) }, nil},
	{"UDP length", "udp4", func(f *sent) { f.bytes[39]--; f.sum(false) }, nil},
	{"UDP checksum wrong", "udp4", func(f *sent) { f.bytes[50] ^= 1 }, nil},
	{"UDP checksum absent", "udp4", func(f *sent) { f.bytes[40], f.bytes[41] = 0, 0 }, nil},
	{"UDP6 checksum wrong", "udp6", func(f *sent) { f.bytes[60] ^= 0x80 }, nil},
	{"partial checksum wrong", "udp4 partial", func(f *sent) { f.bytes[40] ^= 1 }, nil},
	{"partial checksum elsewhere", "udp4 partial", func(f *sent) { f.meta.CsumStart += 8 }, nil},
	{"TCP checksum wrong", "tcp4", func(f *sent) { f.bytes[60] ^= 1 }, nil},
	{"TCP partial checksum wrong", "tcp6 partial", func(f *sent) { f.bytes[70] ^= 1 }, nil},
	{"acknowledgement", "tcp4", func(f *sent) { f.bytes[45]++; f.sum(false) }, nil},
	{"window", "tcp6", func(f *sent) { f.bytes[69]++; f.sum(false) }, nil},
	{"urgent pointer", "tcp4", func(f *sent) { f.bytes[53] = 1; f.sum(false) }, nil},
	{"sequence", "tcp4", func(f *sent) { f.bytes[41]++; f.sum(false) }, nil},
	{"options", "tcp4 timestamps", func(f *sent) { f.bytes[61]++; f.sum(false) }, nil},
	{"reserved bits", "tcp4", func(f *sent) { f.bytes[46] |= 1; f.sum(false) }, nil},
	{"FIN", "tcp4", func(f *sent) { f.bytes[47] |= wire.TCPFin; f.sum(false) }, nil},
	{"SYN", "tcp4", func(f *sent) { f.bytes[47] |= wire.TCPSyn; f.sum(false) }, nil},
	{"RST", "tcp6", func(f *sent) { f.bytes[67] |= wire.TCPRst; f.sum(false) }, nil},
	{"URG", "tcp4", func(f *sent) { f.bytes[47] |= wire.TCPUrg; f.sum(false) }, nil},
	{"ECE", "tcp4", func(f *sent) { f.bytes[47] |= wire.TCPEce; f.sum(false) }, nil},
	{"CWR", "tcp4", func(f *sent) { f.bytes[47] |= wire.TCPCwr; f.sum(false) }, nil},
	{"no ACK", "tcp4", func(f *sent) { f.bytes[47] = 0; f.sum(false) }, nil},
	{"PSH", "tcp4", func(f *sent) { f.bytes[47] |= wire.TCPPsh; f.sum(false) }, []int{2, 1}},
	{"PSH of IPv6", "tcp6", func(f *sent) { f.bytes[67] |= wire.TCPPsh; f.sum(false) }, []int{2, 1}},
	{"super-frame", "udp4 partial", func(f *sent) {
		f.meta.GSOType, f.meta.GSOSize, f.meta.HdrLen = wire.GSOUDPL4, 50, 42
	}, []int{1, 2, 1}},
	{"nothing", "udp4", func(*sent) {}, []int{3}},
}

func TestCoalesceRules(t *testing.T) {
	r := seed.Rand(t)
	for _, rule := range rules {
		s := streams[rule.of]
		in := []sent{s.next(r, 100), s.next(r, 100), s.next(r, 100)}
		rule.spoil(&in[1])
		out := coalesce(t, new(frame.Coalescer), frame.DefaultArena, in)
		checkCoalesced(t, in, out)
		want := rule.apart
		if want == nil {
			want = []int{1, 1, 1}
		}
		if !slices.Equal(out.wires(), want) {
			t.Errorf("%s: %v wire frames, want %v", rule.name, out.wires(), want)
		}
	}
}

// Flows that take turns are merged each: two frame by frame, eight in runs of two.
func TestCoalesceSeveralFlows(t *testing.T) {
	r := seed.Rand(t)
	for _, c := range []struct{ flows, run int }{{2, 1}, {8, 2}} {
		flows := make([]stream, c.flows)
		for i := range flows {
			flows[i] = stream{v6: i%2 == 0, udp: i%4 < 2, port: uint16(i)}
		}
		var in []sent
		for n := range 4 * c.flows * c.run {
			in = append(in, flows[n/c.run%c.flows].next(r, 50))
		}
		out := coalesce(t, new(frame.Coalescer), frame.DefaultArena, in)
		checkCoalesced(t, in, out)
		if want := slices.Repeat([]int{4 * c.run}, c.flows); !slices.Equal(out.wires(), want) {
			t.Errorf("%d flows: %v wire frames, want %v", c.flows, out.wires(), want)
		}
	}
}

// A frame that may not be merged keeps its place among its flow's, whatever it is.
func TestCoalesceKeepsOrder(t *testing.T) {
	r := seed.Rand(t)
	s, other := streams["udp4"], streams["udp6"]
	fragment := s.next(r, 100)
	fragment.bytes[20] = 0x20
	fragment.sums()
	options := sent{bytes: slices.Insert(bytes.Clone(s.next(r, 100).bytes), 34, 1, 1, 1, 1)}
	options.bytes[14], options.bytes[17] = 0x46, options.bytes[17]+4
	for name, c := range map[string]struct {
		between sent
		want    []int
	}{
		"another flow": {other.next(r, 100), []int{4, 1}},
		"a fragment":   {fragment, []int{2, 1, 2}},
		"IPv4 options": {options, []int{2, 1, 2}},
		"ARP":          {sent{bytes: append(bytes.Clone(fragment.bytes[:12]), 0x08, 0x06)}, []int{2, 1, 2}},
		"a short one":  {sent{bytes: fragment.bytes[:14]}, []int{2, 1, 2}},
	} {
		in := []sent{s.next(r, 100), s.next(r, 100), c.between, s.next(r, 100), s.next(r, 100)}
		out := coalesce(t, new(frame.Coalescer), frame.DefaultArena, in)
		if !slices.Equal(out.wires(), c.want) {
			t.Errorf("%s: %v wire frames, want %v", name, out.wires(), c.want)
		}
	}
}

// Group traffic, frames without payload and a burst of one are left alone.
func TestCoalesceLeavesAlone(t *testing.T) {
	r := seed.Rand(t)
	udp, tcp := streams["udp4"], streams["tcp4"]
	group := []sent{udp.next(r, 50), udp.next(r, 50)}
	for _, f := range group {
		f.bytes[0] |= 1
	}
	for name, in := range map[string][]sent{
		"group":   group,
		"UDP":     {udp.next(r, 0), udp.next(r, 0)},
		"TCP":     {tcp.next(r, 0), tcp.next(r, 0)},
		"one":     {tcp.next(r, 10)},
		"nothing": nil,
	} {
		out := coalesce(t, new(frame.Coalescer), frame.DefaultArena, in)
		if len(out.frames) != len(in) {
			t.Errorf("%s: %d frames of %d", name, len(out.frames), len(in))
		}
		for i := range out.frames {
			if out.frames[i].meta != in[i].meta || !bytes.Equal(out.frames[i].bytes, in[i].bytes) {
				t.Errorf("%s: frame %d was changed", name, i)
			}
		}
	}
}

// A super-frame has at most 65,535 bytes of IP packet, and a pool of two of them is enough for any burst.
func TestCoalesceSizes(t *testing.T) {
	r := seed.Rand(t)
	for name, s := range streams {
		for _, size := range []int{1, 1400, 9000, 32_000, 65_000} {
			var in []sent
			for range frame.BurstSize {
				in = append(in, s.next(r, size))
			}
			out := coalesce(t, new(frame.Coalescer), 2*(frame.Headroom+frame.MaxLen), in)
			checkCoalesced(t, in, out)
			headers := len(in[0].bytes) - size
			if most := min(frame.BurstSize, (frame.MaxLen-headers)/size); out.wires()[0] != most {
				t.Errorf("%s of %d bytes: %d in a super-frame, want %d", name, size, out.wires()[0], most)
			}
		}
	}
}

// mixed generates a burst of a few flows with everything that a Coalescer must tell apart.
func mixed(r *rand.Rand) (in []sent) {
	var flows []*stream
	for range 1 + r.IntN(6) {
		flows = append(flows, &stream{v6: r.IntN(2) == 0, udp: r.IntN(2) == 0, partial: r.IntN(2) == 0,
			fragmentable: r.IntN(3) == 0, timestamps: r.IntN(2) == 0,
			port: uint16(r.IntN(4)), id: uint16(r.Uint32()), seq: r.Uint32()})
	}
	size, spoils := 1+r.IntN(200), r.IntN(8)
	for n := 1 + r.IntN(frame.BurstSize); len(in) < n; {
		s := flows[r.IntN(len(flows))]
		for run := 1 + r.IntN(6); run > 0 && len(in) < n; run-- {
			shorter := r.IntN(2) * r.IntN(2) * r.IntN(size)
			f := s.make(randomBytes(r, size-shorter), wire.TCPAck|wire.TCPPsh*uint8(r.IntN(8)/7))
			if !s.v6 && r.IntN(20) == 0 {
				f.bytes[20] |= 0x20 // the first of several fragments
				f.sums()
			}
			if r.IntN(8) < spoils && r.IntN(4) == 0 {
				f.bytes[r.IntN(len(f.bytes))] ^= 1 << r.IntN(8)
			}
			in = append(in, f)
		}
	}
	return in
}

func TestCoalesceMixedFlows(t *testing.T) {
	r := seed.Rand(t)
	rounds := 4000
	if testing.Short() {
		rounds = 400
	}
	var c frame.Coalescer // one for all: nothing may be left of an earlier burst
	saved := 0
	for range rounds {
		in := mixed(r)
		out := coalesce(t, &c, 2*frame.MaxLen, in)
		checkCoalesced(t, in, out)
		saved += len(in) - len(out.frames)
	}
	if saved < rounds {
		t.Errorf("%d frames saved in %d bursts: the test's bursts are no test", saved, rounds)
	}
}

func TestCoalescerDoesNotAllocate(t *testing.T) {
	r := seed.Rand(t)
	s := streams["udp4"]
	from, to := frame.NewPool(frame.BurstSize, frame.DefaultArena), frame.NewPool(frame.BurstSize, frame.DefaultArena)
	var c frame.Coalescer
	var b, out frame.Burst
	template := s.next(r, 18)
	n := testing.AllocsPerRun(100, func() {
		for range frame.BurstSize {
			b.Append(commit(t, from, template.bytes))
		}
		if c.Start(&b) == 0 || c.AppendTo(&out, to) || out.Len() != 1 {
			t.Fatalf("%d frames, want one super-frame", out.Len())
		}
		out.Release()
	})
	if n != 0 {
		t.Errorf("%v allocations per burst", n)
	}
}

// FuzzCoalesce changes bytes and metadata of generated bursts: each 5 bytes of edits are a frame, a place and what is
// added there.
func FuzzCoalesce(f *testing.F) {
	f.Add(uint64(1), []byte{})
	f.Add(uint64(2), []byte{1, 0, 20, 0x20, 0, 2, 0, 14, 1, 1})
	f.Fuzz(func(t *testing.T, seed uint64, edits []byte) {
		in := mixed(rand.New(rand.NewPCG(seed, 0)))
		for ; len(edits) >= 5; edits = edits[5:] {
			s := &in[int(edits[0])%len(in)]
			if at := int(binary.BigEndian.Uint16(edits[1:])); at < len(s.bytes) {
				s.bytes[at] += edits[3]
			} else {
				s.bytes = s.bytes[:at%(len(s.bytes)+1)]
			}
			if edits[4]&1 != 0 {
				s.meta.CsumStart += uint16(edits[4])
			}
			if edits[4]&2 != 0 && len(s.bytes) >= 74 { // as long as any header
				s.sums()
			}
		}
		checkCoalesced(t, in, coalesce(t, new(frame.Coalescer), 2*frame.MaxLen, in))
	})
}

// BenchmarkCoalesce is what a frame costs beside the write: merged, and where nothing can be.
func BenchmarkCoalesce(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, bench := range []struct {
		name  string
		size  int
		flows int
		of    stream
	}{
		{"one flow/18", 18, 1, streams["udp4"]},
		{"one flow, partial/18", 18, 1, streams["udp4 partial"]},
		{"one flow/1400", 1400, 1, streams["udp4"]},
		{"one flow, partial/1400", 1400, 1, streams["udp4 partial"]},
		{"64 flows/18", 18, 64, streams["udp4"]},
	} {
		b.Run(bench.name, func(b *testing.B) {
			from, to := frame.NewPool(frame.BurstSize, 2*frame.DefaultArena), frame.NewPool(frame.BurstSize, frame.DefaultArena)
			var frames [frame.BurstSize]sent
			for i := range frames {
				bench.of.port = uint16(i % bench.flows)
				frames[i] = bench.of.next(r, bench.size)
			}
			var c frame.Coalescer
			var burst, out frame.Burst
			for b.Loop() {
				b.StopTimer()
				for _, s := range frames {
					f := commit(b, from, s.bytes)
					f.Meta = s.meta
					burst.Append(f)
				}
				b.StartTimer()
				if c.Start(&burst) > 0 {
					c.AppendTo(&out, to)
				}
				b.StopTimer()
				out.Release()
				burst.Release()
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/frame.BurstSize, "ns/frame")
		})
	}
}

// What the kernel makes of the super-frames is what was merged.
func TestCoalescedAgainstKernel(t *testing.T) {
	r := seed.Rand(t)
	k := newKernelCutter(t)
	p := frame.NewPool(1, 2*frame.MaxLen)
	for name, s := range streams {
		for _, size := range []int{1, 18, 1400} {
			in := []sent{s.next(r, size), s.next(r, size), s.next(r, size), s.next(r, 1)}
			out := coalesce(t, new(frame.Coalescer), 2*frame.MaxLen, in)
			if len(out.frames) != 1 {
				t.Fatalf("%s: %d frames, want one super-frame", name, len(out.frames))
			}
			f := commit(t, p, out.frames[0].bytes)
			f.Meta = out.frames[0].meta
			for i, b := range k.cut(t, f, len(in)) {
				if want := unnumbered(final(t, in[i])); !bytes.Equal(unnumbered(b), want) {
					t.Errorf("%s: frame %d\nkernel %x\n  want %x", name, i, unnumbered(b), want)
				}
			}
			f.Release()
		}
	}
}
