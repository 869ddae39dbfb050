package encap

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/seed"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// kernelVXLAN gives n a vxlan device that is ipB at macB in VNI 42, and knows ipA at macA beyond the
// Tunnel, with further options of "ip link add type vxlan". It returns a UDP socket behind it.
func (n *node) kernelVXLAN(t *testing.T, options ...string) (conn *net.UDPConn) {
	t.Helper()
	args := []string{"link", "add", "vx", "address", macB.String(), "mtu", "1400", "type", "vxlan", "id", "42", "dstport", "4789",
		"remote", n.far.addr.String()}
	if out, err := n.ns.Command("ip", append(args, options...)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
	n.ns.Do(t, func() {
		vx, err := netlink.LinkByName("vx")
		must(t, err)
		must(t, netlink.LinkSetUp(vx))
		addr, err := netlink.ParseAddr(ipB.String() + "/24")
		must(t, err)
		must(t, netlink.AddrAdd(vx, addr))
		must(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: vx.Attrs().Index, IP: ipA.AsSlice(), HardwareAddr: macA[:],
			State: netlink.NUD_PERMANENT}))
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ipB, 5000)))
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	})
	return conn
}

// The kernel's vxlan device and a Tunnel understand each other, whole, partial and super-frames included:
// a socket behind the device sees exactly the payloads, and answers.
func TestKernelVXLAN(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			r := seed.Rand(t)
			a, b := newUnderlay(t, family)
			a.open(t, 1)
			conn := b.kernelVXLAN(t)
			out, in := newSender(a.tunnel, 0), newReceiver(a.tunnel)
			for _, size := range []struct{ payload, gso int }{{0, 0}, {1, 0}, {1201, 0}, {12345, 1300}, {2600, 1300}} {
				payload := randomBytes(r, size.payload)
				bytes, m := udpFrame(5000, payload, size.gso)
				out.add(t, bytes).Meta = m
				out.send(t)
				requireDatagrams(t, conn, payload, size.gso)
			}
			for _, n := range []int{0, 1, 1201} {
				payload := randomBytes(r, n)
				_, err := conn.WriteToUDPAddrPort(payload, netip.AddrPortFrom(ipA, 4000))
				must(t, err)
				requireUDPFrame(t, receiveUDP(t, in), payload)
			}
			requireDrops(t, &in.st, nil)
		})
	}
}

func requireDatagrams(t *testing.T, conn *net.UDPConn, payload []byte, size int) {
	t.Helper()
	if size == 0 {
		size = max(len(payload), 1)
	}
	buf := make([]byte, frame.MaxLen)
	for first := true; first || len(payload) > 0; first = false {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		must(t, err)
		want := payload[:min(size, len(payload))]
		payload = payload[len(want):]
		if from != netip.AddrPortFrom(ipA, 4000) || !bytes.Equal(buf[:n], want) {
			t.Fatalf("the kernel received %d bytes from %v, want %d", n, from, len(want))
		}
	}
}

// receiveUDP returns the one UDP frame that is on its way; the kernel's device sends multicast of its own.
func receiveUDP(t *testing.T, in *receiver) received {
	t.Helper()
	for {
		some := in.some(t)
		if len(some) == 0 {
			t.Fatal("no UDP frame arrived")
		}
		for _, got := range some {
			if wire.Ethernet(got.bytes).Dst() == macA && got.bytes[wire.EthernetLen+9] == wire.ProtoUDP {
				return got
			}
		}
	}
}

func requireUDPFrame(t *testing.T, got received, payload []byte) {
	t.Helper()
	packet := gopacket.NewPacket(got.bytes, layers.LayerTypeEthernet, gopacket.Default)
	udp, _ := packet.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if udp == nil || udp.SrcPort != 5000 || udp.DstPort != 4000 || !bytes.Equal(udp.Payload, payload) || got.vni != 42 || got.peer != 1 {
		t.Fatalf("VNI %d, peer %d: %v, want %d bytes of payload", got.vni, got.peer, packet, len(payload))
	}
	pseudo := wire.PseudoHeader(got.bytes[wire.EthernetLen:], false, wire.ProtoUDP, int(udp.Length))
	if !wire.UDP(slices.Concat(udp.Contents, udp.Payload)).ChecksumOK(pseudo) {
		t.Errorf("the inner checksum 0x%04x is wrong", udp.Checksum)
	}
}

// The kernel's device may leave outer checksums out, over IPv6 too (RFC 6935), and sets flags of its
// extensions; what it sends arrives, and it takes what we send.
func TestKernelVXLANVariants(t *testing.T) {
	const groupPolicy = 0x1234
	for name, test := range map[string]struct {
		family  string
		options []string
		zero    bool // outer checksums
		flags   uint32
	}{
		"checksum":              {"IPv4", []string{"udpcsum"}, false, 0x08000000},
		"no checksum":           {"IPv4", []string{"noudpcsum"}, true, 0x08000000},
		"checksum, IPv6":        {"IPv6", []string{"noudp6zerocsumtx", "noudp6zerocsumrx"}, false, 0x08000000},
		"no checksum, IPv6":     {"IPv6", []string{"udp6zerocsumtx", "noudp6zerocsumrx"}, true, 0x08000000},
		"accepts none, IPv6":    {"IPv6", []string{"udp6zerocsumrx"}, false, 0x08000000},
		"group policy":          {"IPv4", []string{"gbp"}, false, 0x88000000 | groupPolicy},
		"group policy and none": {"IPv6", []string{"gbp", "udp6zerocsumtx"}, true, 0x88000000 | groupPolicy},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newUnderlay(t, test.family)
			a.open(t, 1)
			conn := b.kernelVXLAN(t, test.options...)
			markGroup(t, conn, groupPolicy)
			var fd int
			a.ns.Do(t, func() { fd = capture(t, "under") })
			out, in := newSender(a.tunnel, 0), newReceiver(a.tunnel)
			payload := []byte("from the device")
			_, err := conn.WriteToUDPAddrPort(payload, netip.AddrPortFrom(ipA, 4000))
			must(t, err)
			requireUDPFrame(t, receiveUDP(t, in), payload)
			requireDrops(t, &in.st, nil)
			sum, flags := outerSumAndFlags(t, fd, payload)
			if (sum == 0) != test.zero || flags != test.flags {
				t.Errorf("the device sent a checksum 0x%04x, flags 0x%08x", sum, flags)
			}
			bytes, m := udpFrame(5000, payload, 0)
			out.add(t, bytes).Meta = m
			out.send(t)
			requireDatagrams(t, conn, payload, 0)
		})
	}
}

// markGroup has the kernel mark what the socket sends, from which a device with "gbp" makes a group policy.
func markGroup(t *testing.T, conn *net.UDPConn, group int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { must(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, group)) }))
}

// outerSumAndFlags returns the outer UDP checksum and the VXLAN header's first word of the captured datagram
// that ends with payload.
func outerSumAndFlags(t *testing.T, fd int, payload []byte) (sum uint16, flags uint32) {
	t.Helper()
	for {
		b := nextUDP(t, fd)
		if !bytes.HasSuffix(b, payload) {
			continue // the kernel's own multicast
		}
		outer, _ := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeUDP).(*layers.UDP)
		return outer.Checksum, binary.BigEndian.Uint32(outer.Payload)
	}
}

// What stands on the wire is what RFC 7348 sections 4.3 and 5 and our own decisions say, read by gopacket.
func TestOuterHeaders(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			a, b := newUnderlay(t, family)
			a.open(t, 2)
			var fd int
			b.ns.Do(t, func() { fd = capture(t, "under") })
			out := newSender(a.tunnel, 1)
			const flows = 200
			ports := map[layers.UDPPort]int{}
			for flow := range flows {
				var own layers.UDPPort
				for range 2 {
					inner, m := udpFrame(5000, []byte("the inner payload"), 0)
					f := out.add(t, inner)
					f.Meta = m
					f.VNI, f.Hash = uint32(0xfffff0+flow%16), uint32(flow)*2654435761
					vni := f.VNI
					out.send(t)
					udp := requireOuter(t, nextUDP(t, fd), a, vni, wireForm(t, inner, m)[0])
					if own != 0 && udp.SrcPort != own {
						t.Fatalf("flow %d: source ports %d and %d", flow, own, udp.SrcPort)
					}
					own = udp.SrcPort
				}
				ports[own]++
			}
			if len(ports) != lanes {
				t.Errorf("%d flows used %d source ports: %v", flows, len(ports), ports)
			}
		})
	}
}

func requireOuter(t *testing.T, b []byte, from *node, vni uint32, inner []byte) *layers.UDP {
	t.Helper()
	packet := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	vx, _ := packet.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
	if vx == nil || !vx.ValidIDFlag || vx.GBPExtension || vx.VNI != vni {
		t.Fatalf("VXLAN %+v, want VNI %d", vx, vni)
	}
	if !bytes.Equal(vx.Payload, inner) {
		t.Fatalf("inner frame\n got %x\nwant %x", vx.Payload, inner)
	}
	return requireUDP(t, b, packet, from)
}

// requireUDP requires what all datagrams of a node have.
func requireUDP(t *testing.T, b []byte, packet gopacket.Packet, from *node) *layers.UDP {
	t.Helper()
	udp := packet.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if udp.DstPort != 4789 || udp.SrcPort < 61000 {
		t.Fatalf("ports %d > %d", udp.SrcPort, udp.DstPort)
	}
	ip := b[wire.EthernetLen:]
	src, dst, v6 := wire.IPv6(ip).Src, wire.IPv6(ip).Dst, true
	if ip4, ok := packet.NetworkLayer().(*layers.IPv4); ok {
		src, dst, v6 = wire.IPv4(ip).Src, wire.IPv4(ip).Dst, false
		if ip4.Flags != layers.IPv4DontFragment || ip4.FragOffset != 0 {
			t.Errorf("outer flags %v, offset %d; want DF alone", ip4.Flags, ip4.FragOffset)
		}
	}
	if src() != from.addr || dst() != from.far.addr {
		t.Errorf("outer addresses %v > %v", src(), dst())
	}
	segment := slices.Concat(udp.Contents, udp.Payload)
	if udp.Checksum == 0 || !wire.UDP(segment).ChecksumOK(wire.PseudoHeader(ip, v6, wire.ProtoUDP, len(segment))) {
		t.Errorf("outer UDP checksum 0x%04x is missing or wrong", udp.Checksum)
	}
	return udp
}

// capture returns an AF_PACKET socket on the device.
func capture(t *testing.T, device string) int {
	t.Helper()
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	link, err := netlink.LinkByName(device)
	must(t, err)
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}))
	return fd
}

// nextUDP returns the next captured frame that gopacket calls UDP.
func nextUDP(t *testing.T, fd int) []byte {
	t.Helper()
	buf := make([]byte, frame.MaxLen)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		must(t, err)
		packet := gopacket.NewPacket(buf[:n], layers.LayerTypeEthernet, gopacket.Default)
		if packet.Layer(layers.LayerTypeUDP) != nil {
			return buf[:n]
		}
	}
}
