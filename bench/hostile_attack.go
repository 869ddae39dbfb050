package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/wire"
)

// station is a pod as a frame names it.
type station struct {
	MAC      wire.MAC
	IP4, IP6 netip.Addr
}

// attackSpec says what an attacker sends out of a device of its pod, and whom it troubles.
type attackSpec struct {
	Netns  string // path of the pod's namespace
	Device string
	Attack string // one of the attacks' names
	Seed   uint64 // the same seed gives the same frames
	Own    station
	Victim station // a neighbour
	Router station // the gateway
}

// attackResult is the attacker's count.
type attackResult struct {
	Sent    uint64        // taken by the device
	Refused uint64        // calls that the device ended early, its ring being full
	Took    time.Duration // from the first frame to the end
}

// attackKind is a way to trouble one's neighbours.
type attackKind struct {
	name string
	// frames returns what writes the next frame, and returns its length.
	frames func(*crafter) func(b []byte) int
}

var attackKinds = []attackKind{
	{"macs", (*crafter).macs},
	{"syn", (*crafter).syn},
	{"arp", (*crafter).arp},
	{"spoof", (*crafter).spoof},
	{"gso", (*crafter).gso},
	{"bcast", (*crafter).bcast},
	{"flood", (*crafter).flood},
}

// attackFrame is the longest frame of an attack: gso's, with its metadata.
const attackFrame = wire.VirtioNetLen + wire.EthernetLen + podMTU

// attack is the job of an attacker: it sends from one line on standard input to the next, as fast as one
// thread can. Unlike a generator it never pauses before a full ring, so that it takes the same share of the
// processor whatever becomes of its frames.
func attack(c *console, spec attackSpec) (attackResult, error) {
	if err := enterForGood(spec.Netns); err != nil {
		return attackResult{}, err
	}
	kind, err := attackNamed(spec.Attack)
	if err != nil {
		return attackResult{}, err
	}
	fd, err := attackSocket(spec)
	if err != nil {
		return attackResult{}, fmt.Errorf("set up the attack %s on %s: %w", spec.Attack, spec.Device, err)
	}
	defer unix.Close(fd)
	craft := &crafter{spec: spec, fd: fd, rand: rand.New(rand.NewPCG(spec.Seed, 0))}
	next := kind.frames(craft)
	if craft.err != nil {
		return attackResult{}, craft.err
	}
	if err := errors.Join(c.ready(), c.wait()); err != nil {
		return attackResult{}, err
	}
	var ending atomic.Bool
	gone := make(chan error, 1)
	go func() {
		gone <- c.wait()
		ending.Store(true)
	}()
	result, err := storm(fd, next, &ending)
	if err != nil {
		return result, fmt.Errorf("send frame %d of the attack %s out of %s: %w", result.Sent, spec.Attack, spec.Device, err)
	}
	return result, <-gone
}

func attackNamed(name string) (attackKind, error) {
	for _, k := range attackKinds {
		if k.name == name {
			return k, nil
		}
	}
	return attackKind{}, fmt.Errorf("unknown attack %q, known: %v", name, attackNames())
}

func attackNames() (names []string) {
	for _, k := range attackKinds {
		names = append(names, k.name)
	}
	return names
}

// attackSocket takes offload metadata before each frame where the attack lies in them.
func attackSocket(spec attackSpec) (int, error) {
	index, err := deviceIndex(spec.Device)
	if err != nil {
		return -1, err
	}
	fd, err := packetSocket(index)
	if err == nil && spec.Attack == "gso" {
		if err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("PACKET_VNET_HDR: %w", err)
		}
	}
	return fd, err
}

// storm sends until it is told to end.
func storm(fd int, next func([]byte) int, ending *atomic.Bool) (attackResult, error) {
	var r attackResult
	b := newBatch(attackFrame)
	start := time.Now()
	for !ending.Load() {
		for i := range batchSize {
			b.iovs[i].SetLen(next(b.bufs[i]))
		}
		sent, errno := b.send(fd, batchSize)
		r.Sent += uint64(sent)
		switch {
		case errno != 0 && errno != unix.ENOBUFS && errno != unix.EINTR:
			return r, errno
		case sent < batchSize:
			r.Refused++
		}
	}
	r.Took = time.Since(start)
	return r, nil
}

// crafter writes an attack's frames.
type crafter struct {
	spec attackSpec
	fd   int
	rand *rand.Rand
	err  error // of setting up
}

// attackMark begins the payload of attack datagrams, for those who look into a capture.
const attackMark = "hostile!"

const shortFrame = minFrame - fcsLen

// macs sends from an address of its own for each frame to one that nobody has, as dsniff's macof does: a
// table of learned addresses runs over, and every frame is flooded.
func (c *crafter) macs() func([]byte) int {
	return func(b []byte) int {
		c.udp(b[:shortFrame], c.mac(), c.mac(), c.subnet4(), c.subnet4())
		return shortFrame
	}
}

// bcast is a broadcast storm from its own address.
func (c *crafter) bcast() func([]byte) int {
	return func(b []byte) int {
		c.udp(b[:shortFrame], c.spec.Own.MAC, wire.Broadcast, c.spec.Own.IP4, c.subnet4())
		return shortFrame
	}
}

// flood sends datagrams to closed ports of the victim: nothing is wrong with them but their number.
func (c *crafter) flood() func([]byte) int {
	return func(b []byte) int {
		c.udp(b[:shortFrame], c.spec.Own.MAC, c.spec.Victim.MAC, c.spec.Own.IP4, c.spec.Victim.IP4)
		return shortFrame
	}
}

// syn opens connections from its own address to random ports: every second one of the victim, the others
// of pods and nodes that don't exist, about which the switch has to send ICMP errors.
func (c *crafter) syn() func([]byte) int {
	var n uint32
	return func(b []byte) int {
		n++
		switch n % 4 {
		case 0:
			c.tcpSYN(b[:shortFrame], c.spec.Router.MAC, c.absent4())
		case 1:
			c.tcpSYN(b[:shortFrame], c.spec.Router.MAC, c.nowhere4())
		default:
			c.tcpSYN(b[:shortFrame], c.spec.Victim.MAC, c.spec.Victim.IP4)
		}
		return shortFrame
	}
}

// arp asks for random addresses of the subnet, and every second time for the gateway.
func (c *crafter) arp() func([]byte) int {
	var n uint32
	return func(b []byte) int {
		target := c.spec.Router.IP4
		if n++; n%2 == 0 {
			target = c.subnet4()
		}
		c.arpFrame(b[:shortFrame], wire.Broadcast, &wire.ARPFields{Op: wire.ARPRequest,
			SenderMAC: c.spec.Own.MAC, SenderIP: c.spec.Own.IP4, TargetIP: target})
		return shortFrame
	}
}

// spoof claims addresses that are not its own, all to the victim: as a sender in IPv4 and IPv6, and the
// gateway's in ARP and neighbour advertisements.
func (c *crafter) spoof() func([]byte) int {
	var n uint32
	own, victim := c.spec.Own.MAC, c.spec.Victim
	return func(b []byte) int {
		n++
		switch n % 4 {
		case 0:
			c.udp(b[:shortFrame], own, victim.MAC, c.nowhere4(), victim.IP4)
		case 1:
			c.arpFrame(b[:shortFrame], victim.MAC, &wire.ARPFields{Op: wire.ARPReply,
				SenderMAC: own, SenderIP: c.spec.Router.IP4, TargetMAC: victim.MAC, TargetIP: victim.IP4})
		case 2:
			return c.advert(b, victim.MAC, c.spec.Own.IP6, victim.IP6, c.spec.Router.IP6)
		default:
			src := c.spec.Own.IP6.As16()
			c.rand64(src[8:])
			return c.advert(b, victim.MAC, netip.AddrFrom16(src), victim.IP6, netip.AddrFrom16(src))
		}
		return shortFrame
	}
}

func (c *crafter) rand64(b []byte) { binary.BigEndian.PutUint64(b, c.rand.Uint64()) }

// mac returns a random unicast address of those that anybody may give out (IEEE 802, bit 2 of the first byte).
func (c *crafter) mac() wire.MAC {
	var b [8]byte
	c.rand64(b[:])
	b[0] = b[0]&^1 | 2
	return wire.MAC(b[:6])
}

// subnet4 returns any address of the pods' subnet, absent4 one that no pod has had time to get.
func (c *crafter) subnet4() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 244, 1, byte(c.rand.Uint32())})
}

func (c *crafter) absent4() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 244, 1, 128 + byte(c.rand.Uint32()%120)})
}

// nowhere4 returns an address of the cluster without a node.
func (c *crafter) nowhere4() netip.Addr {
	r := c.rand.Uint32()
	return netip.AddrFrom4([4]byte{10, 244, 128 | byte(r), byte(r >> 8)})
}

func (c *crafter) udp(b []byte, src, dst wire.MAC, from, to netip.Addr) {
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: dst, Src: src, EtherType: wire.EtherTypeIPv4})
	ip := b[wire.EthernetLen:]
	wire.IPv4(ip).Encode(&wire.IPv4Fields{TotalLen: uint16(len(ip)), TTL: 64, Protocol: wire.ProtoUDP, Src: from, Dst: to})
	l4 := ip[wire.IPv4MinLen:]
	binary.BigEndian.PutUint32(l4, c.rand.Uint32()) // the ports
	binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	binary.BigEndian.PutUint16(l4[6:], 0) // no checksum
	copy(l4[wire.UDPLen:], attackMark)
}

func (c *crafter) tcpSYN(b []byte, dst wire.MAC, to netip.Addr) {
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: dst, Src: c.spec.Own.MAC, EtherType: wire.EtherTypeIPv4})
	ip := b[wire.EthernetLen:][:wire.IPv4MinLen+wire.TCPMinLen]
	clear(b[wire.EthernetLen+len(ip):]) // Ethernet's padding
	wire.IPv4(ip).Encode(&wire.IPv4Fields{TotalLen: uint16(len(ip)), TTL: 64, Protocol: wire.ProtoTCP, Src: c.spec.Own.IP4, Dst: to})
	tcp := ip[wire.IPv4MinLen:]
	clear(tcp)
	binary.BigEndian.PutUint32(tcp, c.rand.Uint32())     // the ports
	binary.BigEndian.PutUint32(tcp[4:], c.rand.Uint32()) // the sequence number
	tcp[12], tcp[13] = wire.TCPMinLen/4<<4, wire.TCPSyn
	sum := wire.Checksum(tcp, wire.PseudoHeader(ip, false, wire.ProtoTCP, len(tcp)))
	binary.BigEndian.PutUint16(tcp[wire.TCPChecksumOffset:], sum)
}

func (c *crafter) arpFrame(b []byte, dst wire.MAC, f *wire.ARPFields) {
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: dst, Src: c.spec.Own.MAC, EtherType: wire.EtherTypeARP})
	wire.ARP(b[wire.EthernetLen:]).Encode(f)
	clear(b[wire.EthernetLen+wire.ARPLen:])
}

// advert is a neighbour advertisement that claims target for us.
func (c *crafter) advert(b []byte, dst wire.MAC, from, to, target netip.Addr) int {
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: dst, Src: c.spec.Own.MAC, EtherType: wire.EtherTypeIPv6})
	ip := b[wire.EthernetLen:]
	na := &wire.NeighborAdvertFields{Override: true, Solicited: true, Target: target, LinkLayer: c.spec.Own.MAC}
	wire.IPv6(ip).Encode(&wire.IPv6Fields{PayloadLen: uint16(na.Len()), NextHeader: wire.ProtoICMPv6, HopLimit: 255, Src: from, Dst: to})
	icmp := ip[wire.IPv6Len:][:na.Len()]
	wire.NeighborAdvert(icmp).Encode(na)
	wire.ICMPv6(icmp).UpdateChecksum(wire.PseudoHeader(ip, true, wire.ProtoICMPv6, len(icmp)))
	return wire.EthernetLen + wire.IPv6Len + na.Len()
}
