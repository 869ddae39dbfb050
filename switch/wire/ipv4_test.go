package wire

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"tapyard/bench/seed"
)

func ipv4Fields(ip IPv4) IPv4Fields {
	return IPv4Fields{
		TOS: ip.TOS(), TotalLen: ip.TotalLen(), ID: ip.ID(), DontFragment: ip.DontFragment(),
		TTL: ip.TTL(), Protocol: ip.Protocol(), Src: ip.Src(), Dst: ip.Dst(),
	}
}

func TestIPv4(t *testing.T) {
	packet := IPv4(realFrames["udpv4"][EthernetLen:])
	want := IPv4Fields{
		TotalLen:     35,
		ID:           0x53b4,
		DontFragment: true,
		TTL:          64,
		Protocol:     ProtoUDP,
		Src:          netip.MustParseAddr("10.0.0.1"),
		Dst:          netip.MustParseAddr("10.0.0.2"),
	}
	if got := ipv4Fields(packet); got != want {
		t.Errorf("decoded %+v, want %+v", got, want)
	}
	if packet.SrcUint32() != 0x0a000001 || packet.DstUint32() != 0x0a000002 {
		t.Errorf("addresses %#x, %#x", packet.SrcUint32(), packet.DstUint32())
	}
	if got := packet.Payload(); !bytes.Equal(got, packet[IPv4MinLen:]) {
		t.Errorf("payload % x", got)
	}
	got := IPv4(dirty(IPv4MinLen))
	got.Encode(&want)
	checkEncoded(t, got, packet[:IPv4MinLen])
	checkShort(t, packet, func(b []byte) bool { return IPv4(b).IsValid() })
}

// The kernel marked these: its last fragment at offset 1480, and the TOS byte 0xc0
// of an ICMP error.
func TestIPv4Fragment(t *testing.T) {
	last := IPv4(realFrames["icmpv4LastFragment"][EthernetLen:])
	if last.FragmentOffset() != 1480 || last.MoreFragments() || last.DontFragment() {
		t.Error(last)
	}
	first := IPv4(bytes.Clone(last))
	binary.BigEndian.PutUint16(first[ipv4Fragment:], 0x2000)
	if first.FragmentOffset() != 0 || !first.MoreFragments() || first.DontFragment() {
		t.Error(first)
	}
	if tos := IPv4(realFrames["icmpv4Unreachable"][EthernetLen:]).TOS(); tos != 0xc0 {
		t.Errorf("TOS %#x", tos)
	}
}

// With every ID the checksum takes every value, 0x0000 before and after among
// them: the corners where RFC 1141's shortcut goes wrong.
func TestIPv4DecrementTTL(t *testing.T) {
	ip := IPv4(bytes.Clone(realFrames["udpv4"][EthernetLen:]))
	var zeroBefore, zeroAfter bool
	for _, ttl := range []uint8{1, 2, 64, 255} {
		for id := range 1 << 16 {
			ip.SetTTL(ttl)
			ip.SetID(uint16(id))
			ip.UpdateChecksum()
			zeroBefore = zeroBefore || ip.Checksum() == 0
			ip.DecrementTTL()
			zeroAfter = zeroAfter || ip.Checksum() == 0
			got := ip.Checksum()
			ip.SetChecksum(0)
			if want := ^slowSum(ip[:IPv4MinLen], 0); ip.TTL() != ttl-1 || got != want {
				t.Fatalf("TTL %d ID %#x: TTL %d checksum %#04x, want %#04x", ttl, id, ip.TTL(), got, want)
			}
		}
	}
	if !zeroBefore || !zeroAfter {
		t.Errorf("the corners were not met: before %t, after %t", zeroBefore, zeroAfter)
	}
}

// Verification and the model agree on every header length, right and wrong
// checksums, and bytes that carry as often as they can.
func TestIPv4ChecksumOK(t *testing.T) {
	r := seed.Rand(t)
	for range rounds(20000) {
		ip := IPv4(randomBytes(r, 60))
		if r.IntN(2) == 0 {
			ip = bytes.Repeat([]byte{0xff}, 60)
		}
		ip[ipv4VersionIHL] = 0x45 + byte(r.IntN(11))
		ip.UpdateChecksum()
		if r.IntN(2) == 0 {
			ip[1+r.IntN(ip.HeaderLen()-1)] ^= 1 << r.IntN(8)
		}
		if got, want := ip.ChecksumOK(), slowSum(ip[:ip.HeaderLen()], 0) == 0xffff; got != want {
			t.Fatalf("ChecksumOK = %t, want %t: % x", got, want, []byte(ip[:ip.HeaderLen()]))
		}
	}
}

// A right checksum stays right, 0x0000 and 0xffff told apart, and a wrong one stays as wrong as it was.
func TestIPv4SetECN(t *testing.T) {
	r := seed.Rand(t)
	for range rounds(20000) {
		ip := IPv4(randomBytes(r, 24))
		ip[ipv4VersionIHL] = 0x46
		ip.UpdateChecksum()
		want, ecn := bytes.Clone(ip), uint8(r.IntN(4))
		want[ipv4TOS] = want[ipv4TOS]&0xfc | ecn
		IPv4(want).UpdateChecksum()
		broken := bytes.Clone(ip)
		broken[ipv4TTL] ^= 1 << r.IntN(8)
		ip.SetECN(ecn)
		if !bytes.Equal(ip, want) {
			t.Fatalf("ECN %d\n got % x\nwant % x", ecn, []byte(ip), want)
		}
		if IPv4(broken).SetECN(ecn); slowSum(broken, 0) == 0xffff {
			t.Fatalf("ECN %d made a wrong checksum right: % x", ecn, broken)
		}
	}
}

func fuzzIPv4(t *testing.T, b []byte) {
	ip := IPv4(b)
	_ = ip.String()
	if !ip.IsValid() {
		return
	}
	if ip.HeaderLen()+len(ip.Payload()) != int(ip.TotalLen()) {
		t.Errorf("payload of %d bytes: %v", len(ip.Payload()), ip)
	}
	fields := ipv4Fields(ip)
	again := IPv4(dirty(int(ip.TotalLen()) + IPv4MinLen))
	again.Encode(&fields)
	if got := ipv4Fields(again); got != fields || !again.IsValid() || !again.ChecksumOK() {
		t.Errorf("%+v became %+v", fields, got)
	}
	ip.UpdateChecksum()
	if slowSum(b[:ip.HeaderLen()], 0) != 0xffff || !ip.ChecksumOK() {
		t.Errorf("checksum %#04x of % x", ip.Checksum(), b[:ip.HeaderLen()])
	}
}
