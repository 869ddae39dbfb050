package wire

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// unhex reads hex digits; a line's // begins a comment.
func unhex(s string) []byte {
	var digits strings.Builder
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "//")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		panic(err)
	}
	return b
}

// rounds is n, or a twentieth of it under -short.
func rounds(n int) int {
	if testing.Short() {
		return n / 20
	}
	return n
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// dirty returns n bytes that no header leaves standing by accident.
func dirty(n int) []byte { return bytes.Repeat([]byte{0xa5}, n) }

func mustMAC(s string) MAC {
	m, err := ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// Every String, of a whole header and of one that is cut.
func TestString(t *testing.T) {
	of := func(name string, offset int) []byte { return realFrames[name][offset:] }
	for _, c := range []struct {
		view fmt.Stringer
		want string
	}{
		{Ethernet(of("udpv4", 0)), "ethernet 02:00:00:00:00:0a > 02:00:00:00:00:0b type 0x0800"},
		{ARP(of("arpRequest", EthernetLen)), "arp who has 10.0.0.2 tell 10.0.0.1 at 02:00:00:00:00:0a"},
		{ARP(of("arpReply", EthernetLen)), "arp 10.0.0.2 is at 02:00:00:00:00:0b to 10.0.0.1 at 02:00:00:00:00:0a"},
		{ARP(set("arpReply", EthernetLen+arpOp, 0, 9)[EthernetLen:]), "arp op 9"},
		{IPv4(of("icmpv4LastFragment", EthernetLen)), "ipv4 10.0.0.1 > 10.0.0.2 protocol 1 len 148 ttl 64 id 38472 df false mf false offset 1480"},
		{IPv6(of("udpv6", EthernetLen)), "ipv6 fd00::1 > fd00::2 next header 17 payload len 15 hop limit 64 class 0x00 flow 0xb875c"},
		{UDP(of("udpv4", l4v4)), "udp 40000 > 53 len 15 checksum 0xa50a"},
		{TCP(of("tcpv4", l4v4)), "tcp 45866 > 80 flags 0x02 seq 2438815141 ack 0 window 64240 header 40"},
		{ICMPv4(of("icmpv4Echo", l4v4)), "icmpv4 type 8 code 0 rest 0x19e80001 len 16"},
		{ICMPv6(of("icmpv6Echo", l4v6)), "icmpv6 type 128 code 0 len 16"},
		{NeighborSolicit(of("neighborSolicit", l4v6)), "neighbor_solicit target fd00::2 link layer 02:00:00:00:00:0a"},
		{NeighborAdvert(of("neighborAdvert", l4v6)), "neighbor_advert target fd00::2 link layer 02:00:00:00:00:0b router false solicited true override true"},
		{VXLAN(of("vxlanARP", l4v4+UDPLen)), "vxlan vni 4242"},
		{VirtioNet(make([]byte, VirtioNetLen)), "virtio_net flags 0 gso type 0 size 0 headers 0 csum start 0 offset 0"},
		{ICMPv4(of("icmpv4Echo", l4v4)[:7]), "icmpv4 invalid (7 bytes)"},
		{KindIPv6, "ipv6"},
	} {
		if got := c.view.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// Offsets of L4 in frames without options and extension headers.
const (
	l4v4 = EthernetLen + IPv4MinLen
	l4v6 = EthernetLen + IPv6Len
)

// checkEncoded fails unless an encoder that was given len(want) dirty bytes
// produced want.
func checkEncoded(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n% x, want\n% x", got, want)
	}
}

// checkShort fails unless isValid refuses every shorter cut of header.
func checkShort(t *testing.T, header []byte, isValid func([]byte) bool) {
	t.Helper()
	if !isValid(header) {
		t.Errorf("% x is not valid", header)
	}
	for n := range header {
		if isValid(header[:n:n]) {
			t.Errorf("valid with %d of %d bytes", n, len(header))
		}
	}
}

// addSeeds seeds f with what stands at offset in each of the named frames.
func addSeeds(f *testing.F, offset int, names ...string) {
	for _, name := range names {
		f.Add(realFrames[name][offset:])
	}
}
