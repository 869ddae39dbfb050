package flow

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/wire"
)

// talk is a conversation that tests have: an opener and an answerer.
type talk struct {
	vni      uint32
	proto    uint8
	from, to netip.AddrPort
}

func (c talk) reversed() talk { return talk{c.vni, c.proto, c.to, c.from} }

// frame returns what gopacket, which doesn't know our code, makes of a frame from its opener, or back.
func (c talk) frame(t testing.TB, back bool, flags uint8) []byte {
	t.Helper()
	src, dst := c.from, c.to
	if back {
		src, dst = dst, src
	}
	var l4 gopacket.SerializableLayer
	switch c.proto {
	case wire.ProtoTCP:
		l4 = &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), FIN: flags&1 != 0, SYN: flags&2 != 0,
			RST: flags&4 != 0, PSH: flags&8 != 0, ACK: flags&16 != 0}
	case wire.ProtoUDP:
		l4 = &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port()), Length: 8}
	case wire.ProtoICMPv4:
		l4 = &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(map[bool]uint8{false: 8, true: 0}[back], 0), Id: c.from.Port()}
	case wire.ProtoICMPv6:
		header := make([]byte, 8)
		header[0] = map[bool]uint8{false: 128, true: 129}[back]
		binary.BigEndian.PutUint16(header[4:], c.from.Port())
		l4 = gopacket.Payload(header)
	}
	eth := &layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.SerializableLayer = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocol(c.proto), SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	if src.Addr().Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocol(c.proto), SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, eth, ip, l4); err != nil {
		t.Fatal(err)
	}
	b := buf.Bytes()
	if src.Addr().Is4() {
		wire.IPv4(b[14:]).UpdateChecksum()
	}
	return b
}

// heard is a frame that was parsed.
type heard struct {
	vni   uint32
	bytes []byte
	p     wire.Parsed
}

func (c talk) heard(t testing.TB, back bool, flags uint8) heard {
	t.Helper()
	h := heard{vni: c.vni, bytes: c.frame(t, back, flags)}
	if fault := wire.Parse(h.bytes, false, &h.p); fault != wire.FaultNone {
		t.Fatalf("%+v: %s", c, fault)
	}
	return h
}

// track has the table see frames at a second, as one burst.
func track(table *Table, second int64, owner Owner, frames ...heard) {
	b := NewBatch(len(frames))
	for i := range frames {
		b.Add(frames[i].vni, frames[i].bytes, &frames[i].p)
	}
	table.Track(b, second*1e9, owner)
}

func all(*Entry) bool { return true }

// numbered returns the i-th of many different UDP conversations; all of its fields follow from i.
func numbered(i int) talk {
	c := talk{vni: uint32(i)&0xff + 0xabcd00, proto: wire.ProtoUDP, from: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), uint16(i)),
		to: netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 1, byte(i >> 8), byte(i)}), uint16(i))}
	if i%3 == 0 {
		a := [16]byte{0: 0xfd, 1: byte(i >> 8), 6: byte(i), 15: byte(i)}
		b := a
		b[2] = 1
		c.from, c.to = netip.AddrPortFrom(netip.AddrFrom16(a), uint16(i)), netip.AddrPortFrom(netip.AddrFrom16(b), uint16(i))
	}
	if i%2 == 0 {
		c.from, c.to = c.to, c.from
	}
	return c
}

func key(e *Entry) talk { return talk{e.VNI, e.Proto, e.From, e.To} }
