package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// faulty matches what no packet of ours may be: cut short, misread, or badly summed, outside or inside.
const faulty = `_ws.malformed || _ws.expert.severity == "Error" || ` +
	`ip.checksum.status == "Bad" || udp.checksum.status == "Bad" || tcp.checksum.status == "Bad" || ` +
	`icmp.checksum.status == "Bad" || icmpv6.checksum.status == "Bad"`

// TestDecode has tshark read what Tapyard puts on the underlay and gives to pods, of every kind of packet.
//
// Only a capture of complete packets can be judged. A kernel that sends through a device with offloads
// leaves sums and segmentation to the device, and a capture shows the packet as it was before: so offloads
// are off wherever packets begin. That holds for pods, too: the switch hands a packet with a partial sum on
// to another pod of its node as it is, with a note that it is partial, and so would a super-frame be. On a
// pod's device only what arrives there is captured, since what leaves is the pod's own work.
func TestDecode(t *testing.T) {
	c := build(t)
	families := []int{4, 6}
	if testing.Short() {
		families = families[:1]
	}
	for _, family := range families {
		t.Run(fmt.Sprintf("tunnels over IPv%d", family), func(t *testing.T) {
			u := newUnderlay(t, family, false)
			n := startNode(t, c, u)
			pod, other := n.attach("pod", nil), n.attach("other", nil)
			withoutOffloads(t, pod.ns, "eth0")
			withoutOffloads(t, other.ns, "eth0")
			kernelVXLAN(t, u, 1, "nolearning udpcsum "+awayFromPayloads)
			foreign := routedPlace(t, u.foreign, "vx")

			under, received := startCapture(t, u.foreign, "under", 0), startCapture(t, pod.ns, "eth0", 1)
			provokeEverything(t, pod, other, foreign, u.mtu)

			requireDecoded(t, under.packets(), map[string]string{
				"echo request":   `vxlan && icmp.type == 8`,
				"echo reply":     `vxlan && icmp.type == 0`,
				"echo request 6": `vxlan && icmpv6.type == 128`,
				"echo reply 6":   `vxlan && icmpv6.type == 129`,
				"fragment":       `vxlan && ip.flags.mf == 1`,
				"fragment 6":     `vxlan && ipv6.fraghdr.more == 1`,
				"TCP":            `vxlan && tcp.len > 0 && ip.src == 10.244.1.0/24`,
				"TCP 6":          `vxlan && tcp.len > 0 && ipv6.src == fd00:10:244:1::/64`,
				"TCP back":       `vxlan && tcp.len > 0 && ip.src == 10.244.9.0/24`,
				"UDP":            `frame.protocols contains "vxlan:eth:ethertype:ip:udp"`,
				"UDP 6":          `frame.protocols contains "vxlan:eth:ethertype:ipv6:udp"`,
			})
			requireDecoded(t, received.packets(), map[string]string{
				"ARP reply":               `arp.opcode == 2`,
				"neighbour advertisement": `icmpv6.type == 136`,
				"echo reply":              `icmp.type == 0`,
				"echo reply 6":            `icmpv6.type == 129`,
				"time exceeded":           `icmp.type == 11`,
				"time exceeded 6":         `icmpv6.type == 3`,
				"no route":                `icmp.type == 3 && icmp.code == 0`,
				"no route 6":              `icmpv6.type == 1 && icmpv6.code == 0`,
				"fragmentation needed":    `icmp.type == 3 && icmp.code == 4`,
				"packet too big":          `icmpv6.type == 2`,
				"TCP":                     `tcp.len > 0 && ip.src == 10.244.9.0/24`,
				"TCP 6":                   `tcp.len > 0 && ipv6.src == fd00:10:244:9::/64`,
				"TCP on the node":         `tcp && ip.src == 10.244.1.0/24`,
				"UDP":                     `udp && ip && !icmp`,
				"UDP 6":                   `udp && ipv6 && !icmpv6`,
			})
		})
	}
}

// TestDecodeStretched has tshark read a network that is one segment with the foreign node: questions for
// addresses and what is for all cross the tunnel, both ways.
func TestDecodeStretched(t *testing.T) {
	u := newUnderlay(t, 4, false)
	n := startNode(t, build(t), u)
	pod := n.attach("pod", blue)
	withoutOffloads(t, pod.ns, "eth0")
	kernelVXLAN(t, u, blueVNI, "udpcsum "+awayFromPayloads)
	under := startCapture(t, u.foreign, "under", 0)
	foreign := stretchedPlace(t, "foreign", bridged(t, u), 200)
	exchange(t, pod, foreign, u.mtu, 20<<10)
	tellAll(t, pod, foreign)
	tellAll(t, foreign, pod)
	requireDecoded(t, under.packets(), map[string]string{
		"ARP request":              `vxlan.vni == 200 && arp.opcode == 1 && arp.src.proto_ipv4 == ` + pod.addrs[0].String(),
		"ARP reply":                `vxlan.vni == 200 && arp.opcode == 2 && arp.src.proto_ipv4 == 10.50.0.200`,
		"neighbour solicitation":   `vxlan.vni == 200 && icmpv6.type == 135 && ipv6.src == ` + pod.addrs[1].String(),
		"neighbour advertisement":  `vxlan.vni == 200 && icmpv6.type == 136 && ipv6.src == fd00:50::c8`,
		"broadcast":                `vxlan.vni == 200 && ip.dst == 10.50.0.255 && ip.src == ` + pod.addrs[0].String(),
		"broadcast of a foreigner": `vxlan.vni == 200 && ip.dst == 10.50.0.255 && ip.src == 10.50.0.200`,
		"multicast":                `vxlan.vni == 200 && ipv6.dst == ff02::1 && udp.dstport == 7 && eth.src == ` + pod.eth0(t).HardwareAddr.String(),
		"TCP":                      `vxlan.vni == 200 && tcp.len > 0 && ip.dst == 10.50.0.200`,
		"TCP 6":                    `vxlan.vni == 200 && tcp.len > 0 && ipv6.dst == fd00:50::c8`,
	})
}

// provokeEverything makes the switch forward and originate every kind of packet that it knows.
func provokeEverything(t *testing.T, pod, other, foreign place, mtu int) {
	t.Helper()
	const volume = 20 << 10
	exchange(t, pod, other, mtu, volume)
	exchange(t, pod, foreign, mtu, volume)
	for _, nobody := range []string{"10.244.77.1", "fd00:10:244:77::1"} {
		pod.provoke(t, netip.MustParseAddr(nobody), 64, 1)
	}
	for _, nobody := range []string{"10.244.1.250", "fd00:10:244:1::250"} {
		foreign.provoke(t, netip.MustParseAddr(nobody), 64, 1)
	}
	shell(t, pod.ns, "ip link set eth0 mtu 4000")
	for _, a := range foreign.addrs {
		pod.provoke(t, a, 1, 1)
		pod.provoke(t, a, 64, 2000) // more than a tunnel takes
	}
}

// provoke sends a datagram and waits for the ICMP error that comes back.
func (p place) provoke(t *testing.T, dst netip.Addr, ttl, size int) {
	t.Helper()
	fd := -1
	err := within(t, p.ns, func() (err error) {
		fd, err = sendOne(dst, ttl, size)
		return err
	})
	defer unix.Close(fd)
	if err != nil || awaitError(t, fd, dst.Is4()).errno == 0 {
		t.Errorf("%d bytes from %s to %s with TTL %d: %v, or no ICMP error", size, p.name, dst, ttl, err)
	}
}

// capture is a packet socket (packet(7)) whose buffer holds all that passes a device during a test.
type capture struct {
	t        *testing.T
	fd       int
	received bool // only that, with a virtio header before each packet
}

const captureBuffer = 64 << 20

// startCapture captures on a device from now on: everything, or only what it receives. What it receives may be
// unfinished, because both ends are on this machine: that is captured as it would be on a wire.
func startCapture(t *testing.T, ns *nstest.NS, device string, received int) *capture {
	t.Helper()
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	c := &capture{t: t, fd: -1, received: received != 0}
	err := within(t, ns, func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		// Protocol 0: nothing arrives before bind, so nothing from another device.
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return errors.Join(err,
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
			unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, received),
			unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, received),
			unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index}))
	})
	if err != nil {
		t.Fatalf("capture on %s: %v", device, err)
	}
	t.Cleanup(func() { unix.Close(c.fd) })
	return c
}

// packets returns what was captured since the start, or the last call.
func (c *capture) packets() (packets [][]byte) {
	c.t.Helper()
	buf := make([]byte, wire.VirtioNetLen+1<<16)
	for {
		n, err := unix.Read(c.fd, buf)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			c.t.Fatal(err)
		}
		if c.received {
			packets = append(packets, c.onWire(wire.VirtioNet(buf), buf[wire.VirtioNetLen:n])...)
			continue
		}
		packets = append(packets, slices.Clone(buf[:n]))
	}
	if stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || stats.Drops > 0 {
		c.t.Fatalf("the capture lost %d packets: %v", stats.Drops, err)
	}
	return packets
}

// tshark counts the packets that each display filter matches.
func tshark(t *testing.T, packets [][]byte, filters ...string) []int {
	t.Helper()
	file := writePcap(t, packets)
	args := append(checkAll, "-r", file, "-q", "-z", "io,stat,0,"+strings.Join(filters, ","))
	out, err := exec.Command("tshark", args...).Output()
	if err != nil {
		t.Fatalf("tshark %q: %v", args, err)
	}
	// The last line but one holds the interval, then frames and bytes of each filter, between bars.
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	columns := strings.Split(lines[max(0, len(lines)-2)], "|")
	if len(columns) != 2*len(filters)+3 {
		t.Fatalf("tshark %q:\n%s", args, out)
	}
	counts := make([]int, len(filters))
	for i := range counts {
		if counts[i], err = strconv.Atoi(strings.TrimSpace(columns[2+2*i])); err != nil {
			t.Fatalf("tshark %q: %v\n%s", args, err, out)
		}
	}
	return counts
}

// checkAll has tshark verify the sums that it takes for the network card's business by default, and take our
// random payloads, to and from ephemeral ports (ip(7), ip_local_port_range), for no protocol by chance.
// The outer source ports of tunnels must then be others, as ours are.
var checkAll = []string{"-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE",
	"-d", "udp.port==32768-60999,data", "-d", "tcp.port==32768-60999,data"}

const awayFromPayloads = "srcport 61000 65535"

func writePcap(t *testing.T, packets [][]byte) (path string) {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	err := w.WriteFileHeader(1<<18, layers.LinkTypeEthernet)
	for i, p := range packets {
		// One packet a millisecond: a time that tells them apart.
		ci := gopacket.CaptureInfo{Timestamp: time.UnixMilli(int64(i)), CaptureLength: len(p), Length: len(p)}
		err = errors.Join(err, w.WritePacket(ci, p))
	}
	path = filepath.Join(t.ArtifactDir(), fmt.Sprintf("%d.pcap", len(packets)))
	if err := errors.Join(err, os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

// onWire is what a packet would be on a wire: cut, and with its checksum.
func (c *capture) onWire(h wire.VirtioNet, packet []byte) (packets [][]byte) {
	c.t.Helper()
	if h.Flags()&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
		return [][]byte{slices.Clone(packet)}
	}
	pool := frame.NewPool(1+frame.BurstSize, 4*frame.MaxLen)
	f := pool.Commit(copy(pool.Reserve(0, len(packet)), packet))
	f.Meta = frame.Meta{NeedsCsum: true, CsumStart: h.CsumStart(), CsumOffset: h.CsumOffset(), GSOType: h.GSOType(), GSOSize: h.GSOSize()}
	if !f.IsSuper() {
		if !frame.CompleteChecksum(f) {
			c.t.Fatalf("the kernel delivered %v before %x", h, packet)
		}
		return [][]byte{f.Bytes()}
	}
	f.HdrLen = f.CsumStart + wire.UDPLen
	if f.CsumOffset == wire.TCPChecksumOffset {
		f.HdrLen = f.CsumStart + uint16(wire.TCP(packet[f.CsumStart:]).DataOffset())
	}
	var cut frame.Segmenter
	if !cut.Start(f) {
		c.t.Fatalf("the kernel delivered %v before %x", h, packet)
	}
	for more := true; more; {
		var part frame.Burst
		more = cut.AppendTo(&part, pool)
		for _, segment := range part.Frames() {
			packets = append(packets, slices.Clone(segment.Bytes()))
		}
		part.Release()
	}
	return packets
}

// requireDecoded asserts that tshark finds no fault with the packets, that they are of all the kinds, and
// that it would have found the fault: it does once a byte of each packet differs.
func requireDecoded(t *testing.T, packets [][]byte, kinds map[string]string) {
	t.Helper()
	names := slices.Sorted(maps.Keys(kinds))
	filters := []string{faulty}
	for _, name := range names {
		filters = append(filters, kinds[name])
	}
	counts := tshark(t, packets, filters...)
	if counts[0] > 0 {
		t.Errorf("%d of %d packets are faulty:\n%s", counts[0], len(packets), explain(t, packets))
	}
	for i, n := range counts[1:] {
		if n == 0 {
			t.Errorf("no packet of the kind %q (%s) among %d", names[i], filters[i+1], len(packets))
		}
	}
	requireFaults(t, packets)
}

// explain lists the faulty packets.
func explain(t *testing.T, packets [][]byte) string {
	t.Helper()
	out, err := exec.Command("tshark", append(checkAll, "-r", writePcap(t, packets), "-Y", faulty)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// requireFaults asserts that tshark notices when packets are broken, those inside of tunnels, too: by another
// last byte, by another TTL of an IPv4 header, whose sum covers nothing else, and by being cut short.
func requireFaults(t *testing.T, packets [][]byte) {
	t.Helper()
	var broken [][]byte
	for _, p := range packets {
		tail, ttl := slices.Clone(p), slices.Clone(p)
		tail[len(p)-1] ^= 0xff
		for _, header := range []int{14, 14 + 70} { // 70 is what a tunnel over IPv6 puts before a frame
			if len(p) > header+20 && ttl[header-2] == 0x08 && ttl[header-1] == 0x00 && ttl[header] == 0x45 {
				ttl[header+8] ^= 0xff
			}
		}
		broken = append(broken, tail, ttl, slices.Clone(p[:30]))
	}
	filters := []string{"_ws.malformed"}
	for _, proto := range []string{"ip", "tcp", "udp", "icmp", "icmpv6"} {
		filters = append(filters, fmt.Sprintf(`%s.checksum.status == "Bad"`, proto))
	}
	for i, n := range tshark(t, broken, filters...) {
		if n == 0 {
			t.Errorf("tshark finds no packet with %s among broken ones", filters[i])
		}
	}
}
