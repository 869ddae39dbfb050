package port

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/bench/seed"
	"tapyard/switch/wire"
)

// queueOf returns the queue that the kernel should choose (tun_ebpf_select_queue).
func queueOf(b []byte, queues int) int { return int(uint16(steered(b))) % queues }

// steered is the slow model of the program: what gopacket finds in the frame, hashed the same way.
func steered(b []byte) uint32 {
	const factor = 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
	var hash uint64
	mix := func(word uint64) {
		hash = (hash + word) * factor
		hash ^= hash >> 32
	}
	mixAll := func(addresses []byte) {
		for ; len(addresses) > 0; addresses = addresses[8:] {
			mix(binary.NativeEndian.Uint64(addresses))
		}
	}
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	var l4 []byte
	var proto layers.IPProtocol
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		mixAll(append(append([]byte(nil), ip.SrcIP...), ip.DstIP...))
		if ip.Flags&layers.IPv4MoreFragments != 0 || ip.FragOffset != 0 {
			return uint32(hash)
		}
		l4, proto = b[wire.EthernetLen+4*int(ip.IHL):], ip.Protocol
	case *layers.IPv6:
		mixAll(append(append([]byte(nil), ip.SrcIP...), ip.DstIP...))
		l4, proto = b[wire.EthernetLen+wire.IPv6Len:], ip.NextHeader
	default:
		return 0
	}
	switch proto {
	case layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolSCTP:
		if len(l4) >= 4 {
			mix(uint64(binary.NativeEndian.Uint32(l4)))
		}
	}
	return uint32(hash)
}

// steerFrame builds a random frame that the model knows.
func steerFrame(t testing.TB, rng *rand.Rand, ipv6 bool, proto layers.IPProtocol, fragment bool, options int) []byte {
	address := func(n int) net.IP {
		a := make(net.IP, n)
		for i := range a {
			a[i] = byte(rng.Uint32())
		}
		return a
	}
	payload := gopacket.Payload(address(4 + rng.IntN(60)))
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr(address(6)), DstMAC: net.HardwareAddr(address(6)), EthernetType: layers.EthernetTypeIPv4}
	parts := []gopacket.SerializableLayer{eth}
	if ipv6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		parts = append(parts, &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: address(16), DstIP: address(16)})
	} else {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: address(4), DstIP: address(4)}
		if options > 0 {
			ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: uint8(2 + 4*options - 2), OptionData: make([]byte, 4*options-2)}}
		}
		if fragment {
			ip.Flags, ip.FragOffset = layers.IPv4MoreFragments, uint16(rng.IntN(3))
		} else if rng.IntN(2) == 0 {
			ip.Flags = layers.IPv4DontFragment
		}
		parts = append(parts, ip)
	}
	buf := gopacket.NewSerializeBuffer()
	check(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, append(parts, payload)...))
	return buf.Bytes()
}

// The program in the kernel and the model agree on every kind of frame, on truncated ones as well.
func TestSteeringIsTheModel(t *testing.T) {
	s := NewSteering(2)
	defer s.Close()
	if _, err := s.queues(2); err != nil {
		t.Fatal(err)
	}
	run := func(b []byte) uint32 {
		// The kernel takes off a first Ethernet header, since socket filters usually see packets.
		ret, _, err := s.prog.Test(append(make([]byte, wire.EthernetLen), b...))
		check(t, err)
		return ret
	}
	rng, kinds := seed.Rand(t), map[uint32]int{}
	protocols := []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolSCTP, layers.IPProtocolICMPv4,
		layers.IPProtocolIPv6Fragment, layers.IPProtocolGRE, 253}
	for i := range 4000 {
		b := steerFrame(t, rng, i%2 == 1, protocols[rng.IntN(len(protocols))], rng.IntN(4) == 0, rng.IntN(11))
		if got, want := run(b), steered(b); got != want {
			t.Fatalf("%x: %#x, want %#x", b, got, want)
		}
		kinds[run(b)%2]++
		// Up to the ports and no further; gopacket wants a whole header.
		if n := wire.EthernetLen + wire.IPv6Len + rng.IntN(8); i%2 == 1 && n < len(b) {
			if got, want := run(b[:n]), steered(b[:n]); got != want {
				t.Fatalf("the first %d bytes: %x: %#x, want %#x", n, b[:n], got, want)
			}
		}
	}
	if kinds[0] < 1500 || kinds[1] < 1500 {
		t.Errorf("4,000 flows went to two queues in parts of %v", kinds)
	}
	b := steerFrame(t, rng, false, layers.IPProtocolUDP, false, 0)
	tagged := append(append(append([]byte(nil), b[:12]...), 0x81, 0, 0, 5), b[12:]...)
	for name, other := range map[string][]byte{
		"empty": nil, "ARP": append(append([]byte(nil), b[:12]...), append([]byte{8, 6}, make([]byte, 28)...)...),
		"tagged": tagged, "an IPv4 header cut short": b[:wire.EthernetLen+19], "an IPv6 header cut short": steerFrame(t, rng, true, 6, false, 0)[:53],
	} {
		if got := run(other); got != 0 {
			t.Errorf("%s: %#x, want queue 0", name, got)
		}
	}
}

// Flows that differ little, as those of one client do, spread as well: in one port, or in the last byte of an address.
func TestSteeringSpreadsNeighbours(t *testing.T) {
	frame := func(src, dst byte, from, to uint16) []byte {
		b := udpFrame(nil)
		b[29], b[33] = src, dst
		binary.BigEndian.PutUint16(b[34:], from)
		binary.BigEndian.PutUint16(b[36:], to)
		return b
	}
	for name, of := range map[string]func(i int) []byte{
		"source port":      func(i int) []byte { return frame(1, 2, uint16(40000+i), 80) },
		"even source port": func(i int) []byte { return frame(1, 2, uint16(40000+2*i), 80) },
		"destination port": func(i int) []byte { return frame(1, 2, 40000, uint16(i)) },
		"destination":      func(i int) []byte { return frame(1, byte(i), 40000, 80) },
		"source":           func(i int) []byte { return frame(byte(i), 2, 40000, 80) },
	} {
		for _, queues := range []int{2, 3, 4} {
			counts := make([]int, queues)
			for i := range 240 {
				counts[queueOf(of(i), queues)]++
			}
			for _, n := range counts {
				if share := 240 / queues; n < share/2 || n > share*3/2 {
					t.Errorf("%s: %d queues have %v of 240 flows", name, queues, counts)
					break
				}
			}
		}
	}
}
