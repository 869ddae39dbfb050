package wire

import (
	"bytes"
	"net/netip"
	"testing"
)

func ipv6Fields(ip IPv6) IPv6Fields {
	return IPv6Fields{
		TrafficClass: ip.TrafficClass(), FlowLabel: ip.FlowLabel(), PayloadLen: ip.PayloadLen(),
		NextHeader: ip.NextHeader(), HopLimit: ip.HopLimit(), Src: ip.Src(), Dst: ip.Dst(),
	}
}

func TestIPv6(t *testing.T) {
	packet := IPv6(realFrames["tcpv6"][EthernetLen:])
	want := IPv6Fields{
		FlowLabel:  0x971b9,
		PayloadLen: 40,
		NextHeader: ProtoTCP,
		HopLimit:   64,
		Src:        netip.MustParseAddr("fd00::1"),
		Dst:        netip.MustParseAddr("fd00::2"),
	}
	if got := ipv6Fields(packet); got != want {
		t.Errorf("decoded %+v, want %+v", got, want)
	}
	srcHi, srcLo := packet.SrcHiLo()
	dstHi, dstLo := packet.DstHiLo()
	if srcHi != 0xfd00<<48 || srcLo != 1 || dstHi != 0xfd00<<48 || dstLo != 2 {
		t.Errorf("addresses %#x:%#x, %#x:%#x", srcHi, srcLo, dstHi, dstLo)
	}
	if got := packet.Payload(); !bytes.Equal(got, packet[IPv6Len:]) {
		t.Errorf("payload % x", got)
	}
	got := IPv6(dirty(IPv6Len))
	got.Encode(&want)
	checkEncoded(t, got, packet[:IPv6Len])
	checkShort(t, packet, func(b []byte) bool { return IPv6(b).IsValid() })
}

// Traffic class and flow label share a word with the version: setting one leaves
// the others.
func TestIPv6ClassAndFlow(t *testing.T) {
	ip := IPv6(bytes.Clone(realFrames["tcpv6"][EthernetLen:]))
	ip.SetTrafficClass(0xb9)
	ip.SetFlowLabel(0xfffedcba)
	ip.DecrementHopLimit()
	if !bytes.Equal(ip[:4], unhex("6b9e dcba")) || ip.HopLimit() != 63 {
		t.Errorf("% x", []byte(ip[:8]))
	}
	ip.SetECN(ECNECT0)
	if !bytes.Equal(ip[:4], unhex("6bae dcba")) {
		t.Errorf("% x", []byte(ip[:4]))
	}
	ip.SetTrafficClass(0)
	if !bytes.Equal(ip[:4], unhex("600e dcba")) {
		t.Errorf("% x", []byte(ip[:4]))
	}
}

func fuzzIPv6(t *testing.T, b []byte) {
	ip := IPv6(b)
	_ = ip.String()
	if !ip.IsValid() {
		return
	}
	fields := ipv6Fields(ip)
	again := IPv6(dirty(IPv6Len))
	again.Encode(&fields)
	checkEncoded(t, again, b[:IPv6Len])
	if len(ip.Payload()) != int(ip.PayloadLen()) {
		t.Errorf("payload of %d bytes: %v", len(ip.Payload()), ip)
	}
}
