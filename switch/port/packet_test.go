package port

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

func sh(t testing.TB, ns *nstest.NS, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	if ns != nil {
		cmd = ns.Command("sh", "-c", script)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// Two pods ping each other, with ARP and neighbour discovery, over each pair of port kinds.
func TestPing(t *testing.T) {
	forPairs(t, func(t *testing.T, a, b *pod) {
		for _, p := range []*pod{a, b} {
			sh(t, p.ns, "ip neigh flush nud permanent dev eth0")
		}
		stop := make(chan struct{})
		var switching sync.WaitGroup
		switching.Go(func() { forward(t, a, b, stop) })
		defer func() { close(stop); switching.Wait() }()
		for _, to := range []netip.Addr{podIPv4(2), podIPv6(2)} {
			sh(t, a.ns, fmt.Sprintf("ping -n -c 3 -i 0.05 -W 5 %v", to))
		}
	})
}

// ipReceived is how many packets this namespace's IPv4 and IPv6 have seen.
func ipReceived(t *testing.T) (n int) {
	t.Helper()
	for path, name := range map[string]string{"/proc/net/snmp": "Ip", "/proc/net/snmp6": "Ip6InReceives"} {
		content, err := os.ReadFile(path)
		check(t, err)
		for line := range strings.Lines(string(content)) {
			fields := strings.Fields(line)
			value := ""
			switch {
			case fields[0] == name && len(fields) == 2:
				value = fields[1]
			case fields[0] == name+":" && fields[3] != "InReceives":
				value = fields[3]
			}
			if v, err := strconv.Atoi(value); err == nil {
				n += v
			}
		}
	}
	return n
}

// A pod that talks to an address of the host, past the switch, gets no answer to ARP, and none from the
// host's IP when it needs no ARP. The same device without a port answers.
func TestHostStackIsKeptOff(t *testing.T) {
	sh(t, nil, "ip addr add 192.0.2.1/32 dev lo")
	defer sh(t, nil, "ip addr del 192.0.2.1/32 dev lo")
	p := newVethPod(t, 1)
	sh(t, p.ns, "ip route add default dev eth0")
	hostMAC := strings.TrimSpace(sh(t, nil, "cat /sys/class/net/host1/address"))
	const ping = "ping -n -c 2 -i 0.1 -W 1 192.0.2.1"
	sh(t, nil, "ip route add 10.244.1.1/32 dev host1")
	before := ipReceived(t)
	sh(t, p.ns, "! "+ping)
	sh(t, p.ns, "ip neigh replace 192.0.2.1 lladdr "+hostMAC+" dev eth0; ! "+ping)
	if n := ipReceived(t) - before; n != 0 {
		t.Errorf("the host's stack has seen %d packets", n)
	}
	if out := sh(t, nil, "ip -6 addr show dev host1"); out != "" {
		t.Errorf("the host has IPv6 addresses in the pod's network: %s", out)
	}
	// Without the guard all this works, so that the above proves something.
	check(t, release(hostEnd(1)))
	sh(t, p.ns, "ip neigh flush all; "+ping)
}

// A tag that the kernel has taken out of a frame is in it again, before the bytes that it was taken from, and
// the metadata has moved with them.
func TestVLANTagIsPutBack(t *testing.T) {
	p := newVethPod(t, 1)
	fd, index := -1, 0
	p.ns.Do(t, func() {
		var err error
		index = eth0(t).Attrs().Index
		fd, err = listenPacket(index)
		check(t, err)
	})
	defer unix.Close(fd)
	for _, tpid := range []uint16{wire.EtherTypeVLAN, wire.EtherTypeQinQ} {
		const tci = 3<<13 | 5 // priority 3, VLAN 5
		plain := udpFrame([]byte("tagged"))
		sent := make([]byte, len(plain)+tagLen)
		copyTagged(sent, plain, tpid, tci)
		meta := frame.Meta{NeedsCsum: true, CsumStart: 14 + 4 + 20, CsumOffset: 6}
		hdr := make([]byte, wire.VirtioNetLen)
		EncodeVirtio(hdr, &meta)
		check(t, unix.Sendto(fd, append(hdr, sent...), 0, &unix.SockaddrLinklayer{Ifindex: index}))
		got := expectTag(t, p, tpid)
		decoded := gopacket.NewPacket(got.bytes, layers.LayerTypeEthernet, gopacket.Default)
		tag, ok := decoded.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q)
		udp, okUDP := decoded.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if !ok || tag.VLANIdentifier != 5 || tag.Priority != 3 || !okUDP || string(udp.Payload) != "tagged" || !bytes.Equal(got.bytes, sent) {
			t.Errorf("%04x: the frame is %v", tpid, decoded)
		}
		if m := got.meta; !m.NeedsCsum || m.CsumStart != meta.CsumStart || m.CsumOffset != meta.CsumOffset {
			t.Errorf("%04x: metadata %+v, want %+v", tpid, m, meta)
		}
	}
}

// expectTag receives until a frame with the EtherType comes.
func expectTag(t *testing.T, p *pod, tpid uint16) (r received) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		b := p.recv(t, 100*time.Millisecond)
		for _, f := range b.Frames() {
			if wire.Ethernet(f.Bytes()).EtherType() == tpid {
				r = received{meta: f.Meta, bytes: bytes.Clone(f.Bytes())}
			}
		}
		b.Release()
		if r.bytes != nil {
			return r
		}
	}
	t.Fatalf("no frame of type %04x", tpid)
	return r
}

func TestUplinkRefuses(t *testing.T) {
	defer sh(t, nil, "for d in up0 up1 up2 br0 tun0; do ip link del $d || true; done")
	sh(t, nil, `ip link add up0 type veth peer name far0 && ip link add br0 type bridge &&
		ip link add up1 type veth peer name far1 && ip link set up1 master br0 &&
		ip link add up2 type veth peer name far2 && ip link add link up2 name mac2 type macvlan &&
		ip addr add 192.0.2.7/24 dev up0 && ip tuntap add tun0 mode tun`)
	for device, says := range map[string]string{
		"nowhere": "no such device",
		"lo":      "loopback",
		"tun0":    "not an Ethernet device",
		"up0":     "192.0.2.7/24",
		"up1":     "br0",
		"up2":     "mac2",
	} {
		_, err := OpenPacket(PacketConfig{Device: device, Uplink: true})
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), device) {
			t.Errorf("OpenPacket(%q): %v, want %q", device, err, says)
		}
	}
	if out := sh(t, nil, "nft list tables"); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

// An uplink that was down is raised, is closed to the host while it is a port, also when that was opened
// after a kill, and is the host's again afterwards.
func TestUplinkIsGivenBack(t *testing.T) {
	sh(t, nil, "ip link add up0 type veth peer name far0 && ip link set far0 up")
	defer sh(t, nil, "ip link del up0")
	first, err := OpenPacket(PacketConfig{Device: "up0", PortName: "uplink", PortKind: "uplink", Uplink: true})
	check(t, err)
	if _, err := OpenPacket(PacketConfig{Device: "up0", PortName: "other", Uplink: true}); err == nil || !strings.Contains(err.Error(), "another agent's") {
		t.Errorf("a second port on it: %v", err)
	}
	if pruned, err := PruneGuards(); err != nil || len(pruned) > 0 || sh(t, nil, "nft list tables") == "" {
		t.Errorf("a second agent's start took the guard away: %v, %v", pruned, err)
	}
	check(t, errors.Join(first.close(), first.disclaim())) // all that the kernel does for a killed process
	p, err := OpenPacket(PacketConfig{Device: "up0", PortName: "uplink", PortKind: "uplink", Uplink: true})
	check(t, err)
	if out := sh(t, nil, "nft list tables"); out != "table netdev tapyard-up0\n" {
		t.Errorf("tables %q, want that of up0", out)
	}
	if out := sh(t, nil, "ip -d link show up0"); !strings.Contains(out, ",UP") || !strings.Contains(out, "promiscuity 1 ") {
		t.Errorf("the device is not up and promiscuous: %s", out)
	}
	check(t, p.Close())
	if out := sh(t, nil, "nft list tables; ip -d link show up0"); strings.Contains(out, "table") || !strings.Contains(out, "promiscuity 0 ") {
		t.Errorf("left behind: %s", out)
	}
}

// Guards go with their devices, and nobody else's tables do.
func TestPruneGuards(t *testing.T) {
	newVethPod(t, 1)
	gone := newVethPod(t, 2)
	sh(t, nil, "nft add table netdev mine; nft add table inet tapyard-x")
	defer sh(t, nil, "nft flush ruleset")
	sh(t, gone.ns, "ip link del eth0")
	sh(t, nil, "ip link add up0 type veth peer name far0; ip link property add dev up0 altname uplink-of-the-lab")
	defer sh(t, nil, "ip link del up0")
	killed, err := OpenPacket(PacketConfig{Device: "uplink-of-the-lab", Uplink: true})
	check(t, err)
	check(t, errors.Join(killed.close(), killed.disclaim()))
	if pruned, err := PruneGuards(); err != nil || !slices.Equal(pruned, []string{hostEnd(2), "up0"}) {
		t.Errorf("pruned %v, %v; want those of a pod that has gone and of an uplink whose agent was killed", pruned, err)
	}
	if out := sh(t, nil, "nft list tables"); strings.Contains(out, hostEnd(2)) || !strings.Contains(out, "tapyard-"+hostEnd(1)) ||
		!strings.Contains(out, "netdev mine") || !strings.Contains(out, "inet tapyard-x") {
		t.Errorf("tables after the device of %s went: %s", hostEnd(2), out)
	}
}

// Whoever flushes the ruleset opens no way past the switch for long.
func TestRestoreGuards(t *testing.T) {
	a, b := newVethPod(t, 1), newVethPod(t, 2)
	before := sh(t, nil, "nft list ruleset")
	ports := []*Packet{a.packet, b.packet}
	if restored, err := RestoreGuards(ports); err != nil || len(restored) > 0 {
		t.Errorf("while all is well: %v, %v", restored, err)
	}
	sh(t, nil, "nft flush ruleset")
	if restored, err := RestoreGuards(ports); err != nil || !slices.Equal(restored, []string{hostEnd(1), hostEnd(2)}) {
		t.Errorf("restored %v, %v", restored, err)
	}
	if after := sh(t, nil, "nft list ruleset"); after != before {
		t.Errorf("restored\n%s\nwhich was\n%s", after, before)
	}
	sh(t, nil, "nft flush ruleset")
	sh(t, b.ns, "ip link del eth0")
	if restored, err := RestoreGuards(ports); err != nil || !slices.Equal(restored, []string{hostEnd(1)}) {
		t.Errorf("with a device that is gone: restored %v, %v", restored, err)
	}
}

func TestPacketToDownedAndDeleted(t *testing.T) {
	p := newVethPod(t, 2)
	sink := p.listen(t, podIPv4(2), 7)
	sh(t, nil, "ip link set host2 down")
	p.send(t, frame.Meta{}, udpFrame([]byte("down")))
	if n := p.st.Drops[drop.PortGone].Frames.Load(); n != 1 || p.packet.Gone() {
		t.Errorf("down: %d counted as port_gone, gone %t; want 1, false", n, p.packet.Gone())
	}
	sh(t, nil, "ip link set host2 up")
	p.recv(t, 0).Release() // as a worker does, whom the error has woken
	p.send(t, frame.Meta{}, udpFrame([]byte("up again")))
	expectDatagrams(t, sink, []byte("up again"), 100)
	p.send(t, frame.Meta{}, make([]byte, 2000))
	if n := p.st.Drops[drop.TooBig].Frames.Load(); n != 1 {
		t.Errorf("%d counted as too_big, want 1", n)
	}
	p.send(t, frame.Meta{NeedsCsum: true, CsumStart: 60_000, CsumOffset: 6}, udpFrame([]byte("bad")))
	if n := p.st.Drops[drop.TxError].Frames.Load(); n != 1 || p.packet.LastError() != unix.EINVAL {
		t.Errorf("%d counted as tx_error, last %v", n, p.packet.LastError())
	}

	p.ns.Do(t, func() { check(t, netlink.LinkDel(eth0(t))) })
	p.send(t, frame.Meta{}, udpFrame([]byte("deleted")))
	if n := p.st.Drops[drop.PortGone].Frames.Load(); n != 2 || !p.packet.Gone() {
		t.Errorf("deleted: %d counted as port_gone, gone %t; want 2, true", n, p.packet.Gone())
	}
	if b := p.recv(t, 0); b.Len() != 0 {
		t.Errorf("%d frames received from a deleted device", b.Len())
	}
	fds := []unix.PollFd{{Fd: int32(p.packet.fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil || fds[0].Revents != 0 { // or the worker would never sleep
		t.Errorf("a deleted device still reports %#x, %v", fds[0].Revents, err)
	}
	_, err := p.packet.Delete()
	check(t, err)
	if _, err := p.packet.KernelDrops(); !errors.Is(err, unix.EBADF) {
		t.Errorf("drop counter of a closed port: %v, want EBADF", err)
	}
	if out := sh(t, nil, "nft list tables"); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

// While nobody reads, the socket's buffer fills, and what the kernel drops is all that is missing afterwards.
func TestPacketKernelDrops(t *testing.T) {
	p := newVethPod(t, 1)
	check(t, unix.SetsockoptInt(p.packet.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 200_000)) // or the test takes long
	p.ns.Do(t, func() { check(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0)) })
	for b := p.recv(t, 0); b.Len() > 0; b = p.recv(t, 0) { // what set-up has sent
		b.Release()
	}
	const sent = 3000
	conn := p.listen(t, podIPv4(1), 0)
	for range sent {
		_, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(podIPv4(2), 7))
		check(t, err)
	}
	received := 0
	for b := p.recv(t, 0); b.Len() > 0; b = p.recv(t, 0) {
		received += b.Len()
		b.Release()
	}
	dropped, err := p.packet.KernelDrops()
	if err != nil || dropped == 0 || received+int(dropped) != sent {
		t.Errorf("%d sent, %d received, %d dropped by the kernel, %v", sent, received, dropped, err)
	}
}

// tcpSuper is a TCP super-frame from pod 1 to pod 2 with a partial checksum, and its metadata.
func tcpSuper(payload []byte, mss int) (frame.Meta, []byte) {
	const l4 = wire.EthernetLen + wire.IPv4MinLen
	b := make([]byte, l4+20+len(payload))
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: podMAC(2), Src: podMAC(1), EtherType: wire.EtherTypeIPv4})
	ip := wire.IPv4(b[wire.EthernetLen:])
	ip.Encode(&wire.IPv4Fields{TotalLen: uint16(len(b) - wire.EthernetLen), TTL: 64, Protocol: wire.ProtoTCP, Src: podIPv4(1), Dst: podIPv4(2)})
	tcp := b[l4:]
	binary.BigEndian.PutUint16(tcp, 9)
	binary.BigEndian.PutUint16(tcp[2:], 7)
	tcp[12], tcp[13] = 5<<4, 0x10 // ACK
	copy(tcp[20:], payload)
	sum := wire.PseudoHeader(ip, false, wire.ProtoTCP, len(tcp))
	binary.BigEndian.PutUint16(tcp[16:], ^wire.Checksum(nil, sum))
	return frame.Meta{GSOType: wire.GSOTCPv4, GSOSize: uint16(mss), HdrLen: l4 + 20, NeedsCsum: true, CsumStart: l4, CsumOffset: 16}, b
}

// What a device without offloads puts on the wire for a super-frame are right segments with right checksums.
func TestSuperFrameToDeviceWithoutOffloads(t *testing.T) {
	p := newVethPod(t, 2)
	sh(t, nil, "ethtool -K host2 tx off tso off gso off sg off")
	wireFD := -1
	p.ns.Do(t, func() {
		var err error
		wireFD, err = listenPacket(eth0(t).Attrs().Index)
		check(t, err)
	})
	defer unix.Close(wireFD)
	payload := pattern(20_000)
	meta, super := tcpSuper(payload, 1460)
	p.send(t, meta, super)
	var got []byte
	for deadline := time.Now().Add(patience); len(got) < len(payload) && time.Now().Before(deadline); {
		buf := make([]byte, slotLen)
		n, err := unix.Read(wireFD, buf)
		if err != nil {
			unix.Poll([]unix.PollFd{{Fd: int32(wireFD), Events: unix.POLLIN}}, 100)
			continue
		}
		if h := wire.VirtioNet(buf); h.GSOType() != wire.GSONone || h.Flags()&wire.NeedsCsum != 0 {
			t.Fatalf("the device has passed on %v", h)
		}
		decoded := gopacket.NewPacket(buf[wire.VirtioNetLen:n], layers.LayerTypeEthernet, gopacket.Default)
		tcp, ok := decoded.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if !ok {
			continue
		}
		if len(tcp.Payload) > 1460 || int(tcp.Seq) != len(got) {
			t.Errorf("a segment of %d bytes at %d, after %d", len(tcp.Payload), tcp.Seq, len(got))
		}
		check(t, tcp.SetNetworkLayerForChecksum(decoded.NetworkLayer()))
		if sum, err := tcp.ComputeChecksum(); err != nil || sum != 0 { // over the checksum too
			t.Errorf("checksum off by %04x at %d, %v", sum, tcp.Seq, err)
		}
		got = append(got, tcp.Payload...)
	}
	if !bytes.Equal(got, payload) {
		t.Errorf("%d bytes arrived, or other ones; want %d", len(got), len(payload))
	}
}

// Neither direction allocates, with plain frames, super-frames and when nothing is there.
func TestPacketAllocatesNothing(t *testing.T) {
	p := newVethPod(t, 1)
	b := p.burstTo(t, 32)
	defer b.Release()
	conn := p.listen(t, podIPv4(1), 0)
	for range 100 {
		_, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(podIPv4(2), 7))
		check(t, err)
	}
	pool := frame.NewPool(frame.BurstSize, frame.DefaultArena)
	var rx frame.Burst
	if n := testing.AllocsPerRun(100, func() {
		p.tx.Send(b)
		p.port.Rx()[0].Recv(0, &rx, pool, &p.st)
		rx.Release()
	}); n != 0 {
		t.Errorf("%v allocations per Send and Recv", n)
	}
}

// burstTo returns n small frames that no pod takes.
func (p *pod) burstTo(t testing.TB, n int) *frame.Burst {
	t.Helper()
	var b frame.Burst
	content := udpFrame([]byte("x"))
	content[5] = 99 // for a MAC that is nobody's
	for range n {
		buf := p.pool.Reserve(0, frame.MaxLen)
		copy(buf, content)
		b.Append(p.pool.Commit(len(content)))
	}
	return &b
}

// BenchmarkSend and BenchmarkRecv compare the kinds of ports. What a pod's stack does with a frame is in Send's
// time: nothing, since the frames are for nobody.
func BenchmarkSend(b *testing.B) {
	for kind, newPod := range pods {
		b.Run(kind, func(b *testing.B) {
			p := newPod(b, 1)
			burst := p.burstTo(b, frame.BurstSize)
			defer burst.Release()
			for b.Loop() {
				p.tx.Send(burst)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/frame.BurstSize, "ns/frame")
			if n := p.st.Tx.Frames.Load(); n < uint64(b.N) {
				b.Errorf("%d frames sent in %d bursts", n, b.N)
			}
		})
	}
}

func BenchmarkRecv(b *testing.B) {
	meta, super := tcpSuper(pattern(60_000), 1460)
	for kind, newPod := range pods {
		b.Run(kind+"/small", func(b *testing.B) { benchRecv(b, newPod(b, 1), 500, frame.Meta{}, udpFrame([]byte("x"))) })
		b.Run(kind+"/super", func(b *testing.B) { benchRecv(b, newPod(b, 1), 50, meta, super) })
	}
}

// benchRecv has the pod send so many frames, untimed, and receives them.
func benchRecv(b *testing.B, p *pod, frames int, meta frame.Meta, content []byte) {
	message := make([]byte, wire.VirtioNetLen+len(content))
	EncodeVirtio(message, &meta)
	copy(message[wire.VirtioNetLen:], content)
	p.ns.Do(b, func() {
		fd, err := listenPacket(eth0(b).Attrs().Index)
		check(b, err)
		defer unix.Close(fd)
		received := 0
		for range b.N {
			b.StopTimer()
			for range frames {
				_, err := unix.Write(fd, message)
				check(b, err)
			}
			b.StartTimer()
			received += p.receiveAll()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(received), "ns/frame")
	})
}

func (p *pod) receiveAll() (n int) {
	var burst frame.Burst
	for more := true; more; {
		more = p.port.Rx()[0].Recv(0, &burst, p.pool, &p.st)
		n += burst.Len()
		burst.Release()
	}
	return n
}
