package bench

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// Another decoder must find in the generator's frame what its spec says, at the sizes that benchmarks use.
func TestTemplateFrame(t *testing.T) {
	from, to := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	for _, size := range []int{minFrame, 128, 1454} {
		spec := generatorSpec{
			From: netip.MustParseAddrPort("10.244.1.3:5001"), To: netip.MustParseAddrPort("10.244.1.4:5002"),
			ToMAC: to.String(), Frame: size, Run: 0x0123456789abcdef,
		}
		frame, err := templateFrame(spec, from)
		if err != nil {
			t.Fatal(err)
		}
		if len(frame) != size-4 {
			t.Errorf("a frame of %d bytes on the wire has %d in memory, want %d", size, len(frame), size-4)
		}
		checkTemplate(t, frame, spec, from, to)
	}
	if _, err := templateFrame(generatorSpec{ToMAC: to.String(), Frame: minFrame - 1}, from); err == nil {
		t.Errorf("a frame of %d bytes was made", minFrame-1)
	}
}

func checkTemplate(t *testing.T, frame []byte, spec generatorSpec, from, to net.HardwareAddr) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if p.ErrorLayer() != nil || len(p.Layers()) != 4 {
		t.Fatalf("gopacket reads %v: %v", p, p.ErrorLayer())
	}
	eth := p.LinkLayer().(*layers.Ethernet)
	ip := p.NetworkLayer().(*layers.IPv4)
	udp := p.TransportLayer().(*layers.UDP)
	if !bytes.Equal(eth.SrcMAC, from) || !bytes.Equal(eth.DstMAC, to) {
		t.Errorf("Ethernet %v to %v", eth.SrcMAC, eth.DstMAC)
	}
	if ip.SrcIP.String() != spec.From.Addr().String() || ip.DstIP.String() != spec.To.Addr().String() || int(ip.Length) != len(frame)-14 {
		t.Errorf("IPv4 %v to %v, length %d", ip.SrcIP, ip.DstIP, ip.Length)
	}
	if want := ip.Checksum; recomputed(t, ip, udp) != want {
		t.Errorf("IPv4 checksum %#x, gopacket's is %#x", want, recomputed(t, ip, udp))
	}
	if uint16(udp.SrcPort) != spec.From.Port() || uint16(udp.DstPort) != spec.To.Port() || int(udp.Length) != len(frame)-34 {
		t.Errorf("UDP %v to %v, length %d", udp.SrcPort, udp.DstPort, udp.Length)
	}
	if got := binary.BigEndian.Uint64(udp.Payload); got != spec.Run {
		t.Errorf("run %#x, want %#x", got, spec.Run)
	}
}

func recomputed(t *testing.T, ip *layers.IPv4, udp *layers.UDP) uint16 {
	t.Helper()
	again := *ip
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, &again, gopacket.Payload(ip.Payload)); err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint16(buf.Bytes()[10:])
}

func stamp(run, number uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, run), number)
}

func TestTallyTellsFramesApart(t *testing.T) {
	tally := tally{run: 7, next: make([]uint64, 1)}
	for _, number := range []uint64{0, 1, 4, 3, 3, 200, 199, 4} {
		tally.count(stamp(7, number))
	}
	tally.count(stamp(8, 5))              // another run's
	tally.count([]byte("short"))          // nobody's
	tally.count(stamp(7, maxFrameNumber)) // asks for 512 MiB
	want := sinkResult{Received: 6, Duplicates: 2, Reordered: 2, Foreign: 3}
	if tally.result != want {
		t.Errorf("counted %+v, want %+v", tally.result, want)
	}
}

// Only within a flow one frame can overtake another.
func TestTallyTellsFlowsApart(t *testing.T) {
	flows := tally{run: 7, next: make([]uint64, 3)}
	for _, number := range []uint64{4, 0, 1, 3, 9, 6, 2} {
		flows.count(stamp(7, number))
	}
	if want := (sinkResult{Received: 7, Reordered: 2}); flows.result != want { // 1 of its flow behind 4, and 6 behind 9
		t.Errorf("counted %+v, want %+v", flows.result, want)
	}
}

// Frames of a mix take turns in size and flow, each a frame that another decoder finds whole.
func TestGeneratorFillsSizesAndFlows(t *testing.T) {
	from, to := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	spec := generatorSpec{
		From: netip.MustParseAddrPort("10.244.1.3:65000"), To: netip.MustParseAddrPort("10.244.1.4:5002"),
		ToMAC: to.String(), Flows: 500, Mix: []int{64, 1468, 570}, Run: 7,
	}
	templates, err := templateFrames(spec, from)
	if err != nil {
		t.Fatal(err)
	}
	g := &generator{spec: spec, templates: templates, batch: newBatch(maxFrame)}
	for number := range uint64(2000) {
		i := int(number % batchSize)
		g.fill(i, number)
		frame := g.batch.bufs[i][:g.batch.iovs[i].Len]
		if want := spec.Mix[number%3] - fcsLen; len(frame) != want {
			t.Fatalf("frame %d has %d bytes, want %d", number, len(frame), want)
		}
		flow := spec
		flow.From = netip.AddrPortFrom(spec.From.Addr(), 65000+uint16(number%500))
		checkTemplate(t, frame, flow, from, to)
		udp := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default).TransportLayer().(*layers.UDP)
		if got := binary.BigEndian.Uint64(udp.Payload[8:]); got != number {
			t.Errorf("frame %d says %d", number, got)
		}
		if sum := recomputedUDP(t, frame); sum != udp.Checksum {
			t.Errorf("frame %d: UDP checksum %#x, gopacket's is %#x", number, udp.Checksum, sum)
		}
	}
	for name, bad := range map[string]generatorSpec{
		"more flows than ports": {From: spec.From, Flows: 537, Frame: 64, ToMAC: spec.ToMAC, To: spec.To},
		"above the MTU":         {From: spec.From, Mix: []int{64, 1518}, ToMAC: spec.ToMAC, To: spec.To},
	} {
		if _, err := templateFrames(bad, from); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// recomputedUDP is the checksum that gopacket would write.
func recomputedUDP(t *testing.T, frame []byte) uint16 {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	udp := p.TransportLayer().(*layers.UDP)
	if err := udp.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
		t.Fatal(err)
	}
	buf := gopacket.NewSerializeBuffer()
	copied := *udp
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, &copied, gopacket.Payload(udp.Payload)); err != nil {
		t.Fatal(err)
	}
	return copied.Checksum
}
