package frame_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/bench/nstest"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var (
	srcMAC = wire.MAC{0x02, 0, 0, 0, 0, 0x0a}
	dstMAC = wire.MAC{0x02, 0, 0, 0, 0, 0x0b}
)

// spec describes a frame of the tests.
type spec struct {
	name    string
	v6, udp bool
	options bool  // IPv4 options, or an IPv6 destination options header; TCP timestamps
	flags   uint8 // TCP
	gso     int   // bytes, 0 for a plain frame with a partial checksum
	payload int   // bytes
}

func (s spec) String() string { return fmt.Sprintf("%s gso %d payload %d", s.name, s.gso, s.payload) }

// kinds are the protocols and header forms to be tested; gso and payload are the test's to choose.
var kinds = []spec{
	{name: "tcp4", flags: wire.TCPAck},
	{name: "tcp4 fin psh cwr ece", flags: wire.TCPAck | wire.TCPFin | wire.TCPPsh | wire.TCPCwr | wire.TCPEce},
	{name: "tcp4 options", options: true, flags: wire.TCPAck | wire.TCPPsh},
	{name: "tcp6", v6: true, flags: wire.TCPAck | wire.TCPPsh | wire.TCPCwr},
	{name: "tcp6 options", v6: true, options: true, flags: wire.TCPAck | wire.TCPFin},
	{name: "udp4", udp: true},
	{name: "udp4 options", udp: true, options: true},
	{name: "udp6", udp: true, v6: true},
	{name: "udp6 options", udp: true, v6: true, options: true},
}

// layersOf returns the frame's headers for gopacket, with random fields.
func (s spec) layersOf(r *rand.Rand) []gopacket.SerializableLayer {
	proto := layers.IPProtocolTCP
	if s.udp {
		proto = layers.IPProtocolUDP
	}
	eth := &layers.Ethernet{SrcMAC: srcMAC[:], DstMAC: dstMAC[:], EthernetType: layers.EthernetTypeIPv4}
	list := []gopacket.SerializableLayer{eth}
	var network gopacket.NetworkLayer
	if s.v6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, FlowLabel: r.Uint32N(1 << 20), NextHeader: proto,
			SrcIP: randomBytes(r, 16), DstIP: randomBytes(r, 16)}
		ip.SrcIP[0], ip.DstIP[0] = 0xfd, 0xfd
		list, network = append(list, ip), ip
		if s.options {
			ip.NextHeader = layers.IPProtocolIPv6Destination
			ext := &layers.IPv6Destination{Options: []*layers.IPv6DestinationOption{{OptionType: 0x1e, OptionData: randomBytes(r, 4)}}}
			ext.NextHeader = proto
			list = append(list, ext)
		}
	} else {
		ip := &layers.IPv4{Version: 4, TTL: 64, Id: uint16(r.Uint32()), Flags: layers.IPv4DontFragment, Protocol: proto,
			SrcIP: randomBytes(r, 4), DstIP: randomBytes(r, 4)}
		ip.SrcIP[0], ip.DstIP[0] = 10, 10
		if s.options {
			ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}} // router alert
		}
		list, network = append(list, ip), ip
	}
	if s.udp {
		udp := &layers.UDP{SrcPort: layers.UDPPort(r.Uint32()), DstPort: layers.UDPPort(r.Uint32())}
		udp.SetNetworkLayerForChecksum(network)
		return append(list, udp)
	}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(r.Uint32()), DstPort: layers.TCPPort(r.Uint32()),
		Seq: r.Uint32() | 0xffff0000, Ack: r.Uint32(), Window: uint16(r.Uint32())} // the sequence wraps often
	setFlags(tcp, s.flags)
	if s.options {
		tcp.Options = []layers.TCPOption{{OptionType: 1}, {OptionType: 1}, {OptionType: 8, OptionLength: 10, OptionData: randomBytes(r, 8)}}
	}
	tcp.SetNetworkLayerForChecksum(network)
	return append(list, tcp)
}

func setFlags(tcp *layers.TCP, f uint8) {
	tcp.FIN, tcp.SYN, tcp.RST, tcp.PSH = f&wire.TCPFin != 0, f&wire.TCPSyn != 0, f&wire.TCPRst != 0, f&wire.TCPPsh != 0
	tcp.ACK, tcp.URG, tcp.ECE, tcp.CWR = f&wire.TCPAck != 0, f&wire.TCPUrg != 0, f&wire.TCPEce != 0, f&wire.TCPCwr != 0
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// serialize is gopacket's idea of the frame, all lengths and checksums complete. Its Ethernet layer would
// pad to 60 bytes, which is a device's job.
func serialize(t testing.TB, list []gopacket.SerializableLayer, payload []byte) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, append(list[1:len(list):len(list)], gopacket.Payload(payload))...); err != nil {
		t.Fatalf("gopacket: %v", err)
	}
	eth := list[0].(*layers.Ethernet)
	hdr := slices.Concat(eth.DstMAC, eth.SrcMAC)
	return append(binary.BigEndian.AppendUint16(hdr, uint16(eth.EthernetType)), buf.Bytes()...)
}

// build returns the frame in p with the metadata that a TAP delivers, its checksum partial.
func (s spec) build(t testing.TB, r *rand.Rand, p *frame.Pool) *frame.Frame {
	t.Helper()
	payload := randomBytes(r, s.payload)
	f := commit(t, p, serialize(t, s.layersOf(r), payload))
	b := f.Bytes()
	f.HdrLen = uint16(len(b) - len(payload))
	f.NeedsCsum, f.CsumOffset, f.CsumStart = true, wire.TCPChecksumOffset, f.HdrLen-wire.TCPMinLen
	if s.options {
		f.CsumStart -= 12
	}
	if s.udp {
		f.CsumOffset, f.CsumStart = wire.UDPChecksumOffset, f.HdrLen-wire.UDPLen
	}
	if s.gso > 0 {
		f.GSOSize, f.GSOType = uint16(s.gso), s.gsoType()
	}
	binary.BigEndian.PutUint16(b[f.CsumStart+f.CsumOffset:], s.pseudoSum(b[wire.EthernetLen:], len(b)-int(f.CsumStart)))
	f.In, f.VNI, f.Peer, f.Hash = 7, 0xabcdef, 3, r.Uint32()
	return f
}

func (s spec) gsoType() uint8 {
	t := wire.GSOTCPv4
	switch {
	case s.udp:
		return wire.GSOUDPL4
	case s.v6:
		t = wire.GSOTCPv6
	}
	if s.flags&wire.TCPCwr != 0 {
		t |= wire.GSOECN
	}
	return t
}

// pseudoSum is the slow model of a pseudo header's sum, one word after the other.
func (s spec) pseudoSum(ip []byte, l4len int) uint16 {
	words := ip[12:20]
	if s.v6 {
		words = ip[8:40]
	}
	sum := l4len + 6
	if s.udp {
		sum += 17 - 6
	}
	for ; len(words) > 0; words = words[2:] {
		sum += int(words[0])<<8 | int(words[1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// commit puts bytes into a frame of p.
func commit(t testing.TB, p *frame.Pool, b []byte) *frame.Frame {
	t.Helper()
	buf := p.Reserve(0, len(b))
	if buf == nil {
		t.Fatalf("no room for %d bytes with %d frames live", len(b), p.Live())
	}
	copy(buf, b)
	return p.Commit(len(b))
}
