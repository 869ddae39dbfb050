package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// serialize is gopacket's idea of a frame from A to B with the given layers.
func serialize(t testing.TB, list ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, list...))
	return bytes.Clone(buf.Bytes())
}

func ethernet(kind layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: macA[:], DstMAC: macB[:], EthernetType: kind}
}

// frame4 and frame6 are UDP frames with a TOS or traffic class.
func frame4(t testing.TB, tos uint8, payload []byte) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, TOS: tos, Id: uint16(tos) << 7, Protocol: layers.IPProtocolUDP, SrcIP: ipA.AsSlice(), DstIP: ipB.AsSlice()}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	must(t, udp.SetNetworkLayerForChecksum(ip))
	return serialize(t, ethernet(layers.EthernetTypeIPv4), ip, udp, gopacket.Payload(payload))
}

func frame6(t testing.TB, class uint8, payload []byte) []byte {
	ip := &layers.IPv6{Version: 6, HopLimit: 64, TrafficClass: class, FlowLabel: 0xfedcb, NextHeader: layers.IPProtocolUDP,
		SrcIP: net.ParseIP("fd00:9::1"), DstIP: net.ParseIP("fd00:9::2")}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	must(t, udp.SetNetworkLayerForChecksum(ip))
	return serialize(t, ethernet(layers.EthernetTypeIPv6), ip, udp, gopacket.Payload(payload))
}

// ecnFrames returns frames with each ECN field and some DSCP, of both families, and one that isn't IP.
func ecnFrames(t testing.TB) (all [][]byte) {
	for i := range uint8(4) {
		all = append(all, frame4(t, 0x28|i, make([]byte, 30)), frame6(t, 0x48|i, make([]byte, 30)))
	}
	arp := bytes.Repeat([]byte{2}, 64)
	copy(arp[12:], []byte{8, 6})
	return append(all, arp)
}

// receivedWith is what the kernel writes beside datagrams with such a TOS, which it has put into one with segments of
// size if that isn't 0.
func receivedWith(v6 bool, tos uint8, size uint16) (c receiveControl, n int) {
	value := func(m *controlMessage, level, kind int32, b []byte) {
		m.hdr.Level, m.hdr.Type = level, kind
		m.hdr.SetLen(unix.CmsgLen(4))
		copy(m.value[:], b)
	}
	if size != 0 {
		value(&c[0], unix.SOL_UDP, unix.UDP_GRO, binary.NativeEndian.AppendUint32(nil, uint32(size)))
		n++
	}
	if v6 {
		value(&c[n], unix.IPPROTO_IPV6, unix.IPV6_TCLASS, binary.NativeEndian.AppendUint32(nil, uint32(tos)))
	} else {
		value(&c[n], unix.IPPROTO_IP, unix.IP_TOS, []byte{tos, 0xa5, 0xa5, 0xa5})
	}
	return c, (n + 1) * unix.CmsgSpace(4)
}

// modelECN is RFC 6040 section 4.2 read aloud, without package wire: what becomes of a frame from a
// datagram with such a TOS.
func modelECN(tos uint8, b []byte) ([]byte, drop.Reason) {
	b = bytes.Clone(b)
	var at, shift, headerLen, length int // of the ECN field: its byte, and its place there
	switch {
	case len(b) >= 34 && b[12] == 0x08 && b[13] == 0x00 && b[14]>>4 == 4:
		at, headerLen, length = 15, int(b[14]&15)*4, int(b[16])<<8|int(b[17])
		if headerLen < 20 || headerLen > len(b)-14 || length < headerLen || length > len(b)-14 {
			return b, drop.None
		}
	case len(b) >= 54 && b[12] == 0x86 && b[13] == 0xdd && b[14]>>4 == 6:
		at, shift, length = 15, 4, int(b[18])<<8|int(b[19])
		if length > len(b)-54 || length == 0 && b[20] == 0 {
			return b, drop.None
		}
	default:
		return b, drop.None
	}
	const notECT, ect1, ect0, ce = 0, 1, 2, 3
	inner, outer := int(b[at]>>shift)&3, int(tos)&3
	became := inner
	switch {
	case inner == notECT && outer == ce:
		return nil, drop.ECNNotCapable
	case inner == notECT:
	case outer == ce:
		became = ce
	case inner == ect0 && outer == ect1:
		became = ect1
	}
	b[at] += byte((became - inner) << shift)
	if headerLen > 0 && became != inner { // RFC 1624, the other way round: what the sum gains, the checksum loses
		sum := int(b[24])<<8 | int(b[25])
		sum -= became - inner
		if sum < 0 { // ones' complement
			sum--
		}
		if sum >= 0xffff { // a checksum is never 0xffff unless all is zero
			sum -= 0xffff
		}
		binary.BigEndian.PutUint16(b[24:], uint16(sum))
	}
	return b, drop.None
}

// All combinations of inner and outer ECN field, each family in each: what comes out is what the kernel's
// vxlan device lets out, and what RFC 6040 says.
func TestDecapsulateECNAgainstKernel(t *testing.T) {
	const kernelPort = 4790
	for family := range families {
		t.Run(family, func(t *testing.T) {
			a, b := newUnderlay(t, family)
			a.open(t, 1)
			var tap int
			a.ns.Do(t, func() {
				vx := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx"}, VxlanId: 42, Port: kernelPort, SrcAddr: a.addr.AsSlice()}
				must(t, netlink.LinkAdd(vx))
				must(t, netlink.LinkSetUp(vx))
				tap = capture(t, "vx")
			})
			var conn net.PacketConn
			b.ns.Do(t, func() {
				var err error
				conn, err = net.ListenPacket("udp", netip.AddrPortFrom(b.addr, 61000).String())
				must(t, err)
				t.Cleanup(func() { conn.Close() })
			})
			in := newReceiver(a.tunnel)
			end := frame4(t, 0, []byte("the end"))
			dropped := uint64(0)
			for _, inner := range ecnFrames(t) {
				for outer := range 4 {
					setTOS(t, conn.(*net.UDPConn), family, 0xb8|outer)
					sendTo(t, conn, a.addr, DefaultPort, vxlan(42, inner))
					sendTo(t, conn, a.addr, kernelPort, vxlan(42, inner))
					setTOS(t, conn.(*net.UDPConn), family, 0)
					sendTo(t, conn, a.addr, DefaultPort, vxlan(42, end))
					sendTo(t, conn, a.addr, kernelPort, vxlan(42, end))
					var got [][]byte
					for len(got) == 0 || !bytes.Equal(got[len(got)-1], end) {
						for _, r := range in.some(t) {
							got = append(got, r.bytes)
						}
					}
					want, reason := modelECN(uint8(outer), inner)
					if reason != drop.None {
						dropped++
					} else if !bytes.Equal(got[0], want) {
						t.Errorf("outer %d\n got %x\nwant %x", outer, got[0], want)
					}
					if kernel := capturedUntil(t, tap, end); !slices.EqualFunc(got, kernel, bytes.Equal) {
						t.Errorf("outer %d, inner %x\n  ours %x\nkernel %x", outer, inner, got, kernel)
					}
				}
			}
			requireDrops(t, &in.st, map[drop.Reason]counted{drop.ECNNotCapable: {dropped, dropped}})
		})
	}
}

func sendTo(t *testing.T, conn net.PacketConn, to netip.Addr, port uint16, b []byte) {
	t.Helper()
	_, err := conn.WriteTo(b, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, port)))
	must(t, err)
}

func setTOS(t *testing.T, conn *net.UDPConn, family string, tos int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		if family == "IPv4" {
			must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos))
		} else {
			must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos))
		}
	}))
}

// capturedUntil returns the captured frames from A or like ecnFrames' ARP, up to the given one.
func capturedUntil(t *testing.T, fd int, end []byte) (all [][]byte) {
	t.Helper()
	buf := make([]byte, frame.MaxLen)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		must(t, err)
		if src := wire.Ethernet(buf).Src(); src != macA && src[1] != 2 {
			continue // the kernel's own multicast
		}
		all = append(all, bytes.Clone(buf[:n]))
		if bytes.Equal(buf[:n], end) {
			return all
		}
	}
}

// The outer header carries the inner ECN field and no DSCP, whatever the frames around are, super-frames'
// segments and completed checksums included.
func TestOuterECN(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			a, b := newUnderlay(t, family)
			a.open(t, 1)
			var fd int
			b.ns.Do(t, func() { fd = capture(t, "under") })
			out := newSender(a.tunnel, 0)
			var want []uint8
			for i, inner := range ecnFrames(t) {
				out.add(t, inner)
				want = append(want, uint8(i/2)&3)
				partial, meta := udpFrame(5000, make([]byte, 2000), 700*(i%2))
				if i%2 == 0 {
					partial, meta = udpFrame(5000, make([]byte, 900), 0)
				}
				tos := uint8(i*7) | 0x40
				wire.IPv4(partial[wire.EthernetLen:]).SetTOS(tos)
				wire.IPv4(partial[wire.EthernetLen:]).UpdateChecksum()
				out.add(t, partial).Meta = meta
				for range 1 + i%2*2 {
					want = append(want, tos&3)
				}
			}
			want[len(want)-2] = 0 // the ARP
			out.add(t, []byte("x"))
			out.send(t)
			for i, ecn := range append(want, 0) {
				if tos := outerOf(t, nextUDP(t, fd)); tos != ecn {
					t.Errorf("datagram %d: TOS 0x%02x, want 0x%02x", i, tos, ecn)
				}
			}
		})
	}
}

// outerOf returns the TOS or traffic class of the outermost IP header.
func outerOf(t *testing.T, b []byte) uint8 {
	t.Helper()
	switch ip := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default).NetworkLayer().(type) {
	case *layers.IPv4:
		return ip.TOS
	case *layers.IPv6:
		return ip.TrafficClass
	}
	t.Fatalf("no IP in %x", b)
	return 0
}

// A congestion mark reaches the pods across two Tunnels: nftables on the way marks what can be marked.
func TestCongestionMark(t *testing.T) {
	for family, field := range map[string]string{"IPv4": "ip ecn", "IPv6": "ip6 ecn"} {
		t.Run(family, func(t *testing.T) {
			a, b := newUnderlay(t, family)
			a.open(t, 1)
			b.open(t, 1)
			nft(t, b, "add table inet congested", "add chain inet congested in { type filter hook prerouting priority 0; }",
				fmt.Sprintf("add rule inet congested in %s { ect0, ect1 } %s set ce", field, field))
			out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
			for tos := range uint8(4) {
				out.add(t, frame4(t, tos, []byte("a payload")))
				out.add(t, frame6(t, tos, []byte("a payload")))
			}
			out.send(t)
			for i, got := range in.receive(t, 8) {
				tos := []uint8{0, 3, 3, 3}[i/2]
				want := frame4(t, tos, []byte("a payload"))
				if i%2 == 1 {
					want = frame6(t, tos, []byte("a payload"))
				} else { // frame4's identification follows its TOS
					copy(want[18:], got.bytes[18:20])
					wire.IPv4(want[14:]).UpdateChecksum()
				}
				if !bytes.Equal(got.bytes, want) {
					t.Errorf("frame %d\n got %x\nwant %x", i, got.bytes, want)
				}
			}
			requireDrops(t, &in.st, nil)
		})
	}
}

func nft(t *testing.T, n *node, commands ...string) {
	t.Helper()
	for _, command := range commands {
		if out, err := n.ns.Command("nft", command).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v: %s", command, err, out)
		}
	}
}
