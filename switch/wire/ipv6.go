package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// IPv6 is a view over an IPv6 packet (RFC 8200); it may extend beyond the packet,
// as Ethernet padding does. Getters and setters may be called only after IsValid
// (or Parse) said true.
type IPv6 []byte

const (
	ipv6VersionClassFlow = 0
	ipv6PayloadLen       = 4
	ipv6NextHeader       = 6
	ipv6HopLimit         = 7
	ipv6Src              = 8
	ipv6Dst              = 24

	// IPv6Len is the length of the fixed header.
	IPv6Len = 40
)

// IsValid says whether the version and the payload length are right and the whole
// packet is there. Jumbograms (RFC 2675) are not valid.
func (ip IPv6) IsValid() bool { return ip.fault() == FaultNone }

func (ip IPv6) fault() Fault {
	switch {
	case len(ip) < IPv6Len:
		return FaultShortIPv6
	case ip[ipv6VersionClassFlow]>>4 != 6:
		return FaultIPv6Version
	case IPv6Len+int(ip.PayloadLen()) > len(ip):
		return FaultIPv6PayloadLen
	case ip.PayloadLen() == 0 && ip.NextHeader() == ProtoHopByHop: // a jumbogram
		return FaultIPv6PayloadLen
	}
	return FaultNone
}

// TrafficClass returns DSCP in the upper 6 bits and ECN in the lower 2.
func (ip IPv6) TrafficClass() uint8 { return uint8(ip.versionClassFlow() >> 20) }

// FlowLabel returns the 20-bit flow label.
func (ip IPv6) FlowLabel() uint32 { return ip.versionClassFlow() & 0xfffff }

func (ip IPv6) versionClassFlow() uint32 {
	return binary.BigEndian.Uint32(ip[ipv6VersionClassFlow:])
}

// PayloadLen returns the bytes behind the fixed header, extension headers included.
func (ip IPv6) PayloadLen() uint16 { return binary.BigEndian.Uint16(ip[ipv6PayloadLen:]) }

// NextHeader returns the type of what follows, one of the Proto constants or
// another.
func (ip IPv6) NextHeader() uint8 { return ip[ipv6NextHeader] }

// HopLimit returns the hops left.
func (ip IPv6) HopLimit() uint8 { return ip[ipv6HopLimit] }

// Src returns the source address.
func (ip IPv6) Src() netip.Addr { return netip.AddrFrom16([16]byte(ip[ipv6Src:ipv6Dst])) }

// Dst returns the destination address.
func (ip IPv6) Dst() netip.Addr { return netip.AddrFrom16([16]byte(ip[ipv6Dst:IPv6Len])) }

// SrcHiLo returns the source address as two numbers, network part first.
func (ip IPv6) SrcHiLo() (hi, lo uint64) { return hiLo(ip[ipv6Src:ipv6Dst]) }

// DstHiLo returns the destination address as two numbers, network part first.
func (ip IPv6) DstHiLo() (hi, lo uint64) { return hiLo(ip[ipv6Dst:IPv6Len]) }

func hiLo(b []byte) (hi, lo uint64) {
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
}

// Payload returns what follows the fixed header, up to the payload length.
func (ip IPv6) Payload() []byte { return ip[IPv6Len : IPv6Len+int(ip.PayloadLen())] }

// SetTrafficClass sets DSCP and ECN.
func (ip IPv6) SetTrafficClass(v uint8) {
	ip.setVersionClassFlow(v, ip.FlowLabel())
}

// SetECN sets the lower 2 bits of the traffic class to v, which must have no others.
func (ip IPv6) SetECN(v uint8) { ip.SetTrafficClass(ip.TrafficClass()&^ECNMask | v) }

// SetFlowLabel sets the lower 20 bits of v as the flow label.
func (ip IPv6) SetFlowLabel(v uint32) {
	ip.setVersionClassFlow(ip.TrafficClass(), v)
}

func (ip IPv6) setVersionClassFlow(class uint8, flow uint32) {
	binary.BigEndian.PutUint32(ip[ipv6VersionClassFlow:], 6<<28|uint32(class)<<20|flow&0xfffff)
}

// SetPayloadLen sets the bytes behind the fixed header.
func (ip IPv6) SetPayloadLen(v uint16) { binary.BigEndian.PutUint16(ip[ipv6PayloadLen:], v) }

// SetNextHeader sets the type of what follows the fixed header.
func (ip IPv6) SetNextHeader(v uint8) { ip[ipv6NextHeader] = v }

// SetHopLimit sets the hops left.
func (ip IPv6) SetHopLimit(v uint8) { ip[ipv6HopLimit] = v }

// SetSrc sets the source address; an IPv4 one becomes 4-in-6.
func (ip IPv6) SetSrc(a netip.Addr) { *(*[16]byte)(ip[ipv6Src:]) = a.As16() }

// SetDst sets the destination address; an IPv4 one becomes 4-in-6.
func (ip IPv6) SetDst(a netip.Addr) { *(*[16]byte)(ip[ipv6Dst:]) = a.As16() }

// DecrementHopLimit takes one hop off. The caller has seen that more than 1 is
// left (RFC 8200 section 3).
func (ip IPv6) DecrementHopLimit() { ip[ipv6HopLimit]-- }

// IPv6Fields are the fields of the fixed header. PayloadLen is in bytes without
// the fixed header; FlowLabel has 20 bits.
type IPv6Fields struct {
	TrafficClass uint8
	FlowLabel    uint32
	PayloadLen   uint16
	NextHeader   uint8
	HopLimit     uint8
	Src, Dst     netip.Addr
}

// Encode writes the header; ip must have IPv6Len bytes.
func (ip IPv6) Encode(f *IPv6Fields) {
	ip.setVersionClassFlow(f.TrafficClass, f.FlowLabel)
	ip.SetPayloadLen(f.PayloadLen)
	ip.SetNextHeader(f.NextHeader)
	ip.SetHopLimit(f.HopLimit)
	ip.SetSrc(f.Src)
	ip.SetDst(f.Dst)
}

// String describes the header for people.
func (ip IPv6) String() string {
	if !ip.IsValid() {
		return invalid("ipv6", ip)
	}
	return fmt.Sprintf("ipv6 %v > %v next header %d payload len %d hop limit %d class 0x%02x flow 0x%05x",
		ip.Src(), ip.Dst(), ip.NextHeader(), ip.PayloadLen(), ip.HopLimit(), ip.TrafficClass(), ip.FlowLabel())
}
