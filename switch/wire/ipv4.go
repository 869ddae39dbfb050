package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// IPv4 is a view over an IPv4 packet (RFC 791); it may extend beyond the packet,
// as Ethernet padding does. Getters and setters may be called only after IsValid
// (or Parse) said true.
type IPv4 []byte

const (
	ipv4VersionIHL = 0
	ipv4TOS        = 1
	ipv4TotalLen   = 2
	ipv4ID         = 4
	ipv4Fragment   = 6
	ipv4TTL        = 8
	ipv4Protocol   = 9
	ipv4Checksum   = 10
	ipv4Src        = 12
	ipv4Dst        = 16

	ipv4DontFragment  = 0x4000
	ipv4MoreFragments = 0x2000
	ipv4OffsetMask    = 0x1fff // in units of 8 bytes

	// IPv4MinLen is the length of a header without options.
	IPv4MinLen = 20
)

// Numbers of the IPv4 protocol and IPv6 next header fields (IANA, "Assigned
// Internet Protocol Numbers").
const (
	ProtoHopByHop    uint8 = 0
	ProtoICMPv4      uint8 = 1
	ProtoTCP         uint8 = 6
	ProtoUDP         uint8 = 17
	ProtoRouting     uint8 = 43
	ProtoFragment    uint8 = 44
	ProtoESP         uint8 = 50
	ProtoAH          uint8 = 51
	ProtoICMPv6      uint8 = 58
	ProtoNoNext      uint8 = 59
	ProtoDestOptions uint8 = 60
)

// Codepoints of the ECN field (RFC 3168 section 5, RFC 8311), which is the lower 2
// bits of IPv4's TOS and of IPv6's traffic class.
const (
	ECNNotECT uint8 = iota // the packet's ends don't understand congestion marks
	ECNECT1                // they do
	ECNECT0                // they do, too
	ECNCE                  // congestion experienced

	ECNMask uint8 = 3
)

// IsValid says whether version, header length and total length are right and the
// whole packet is there. It doesn't verify the checksum: ChecksumOK does.
func (ip IPv4) IsValid() bool { return ip.fault() == FaultNone }

func (ip IPv4) fault() Fault {
	switch {
	case len(ip) < IPv4MinLen:
		return FaultShortIPv4
	case ip[ipv4VersionIHL]>>4 != 4:
		return FaultIPv4Version
	case ip.HeaderLen() < IPv4MinLen || ip.HeaderLen() > len(ip):
		return FaultIPv4HeaderLen
	case int(ip.TotalLen()) < ip.HeaderLen() || int(ip.TotalLen()) > len(ip):
		return FaultIPv4TotalLen
	}
	return FaultNone
}

// HeaderLen returns the header's length in bytes, options included: 20 to 60.
func (ip IPv4) HeaderLen() int { return int(ip[ipv4VersionIHL]&0x0f) * 4 }

// TOS returns the type of service byte: DSCP in the upper 6 bits, ECN in the
// lower 2 (RFC 2474, RFC 3168).
func (ip IPv4) TOS() uint8 { return ip[ipv4TOS] }

// TotalLen returns the packet's length in bytes, header included.
func (ip IPv4) TotalLen() uint16 { return binary.BigEndian.Uint16(ip[ipv4TotalLen:]) }

// ID returns the identification that fragments of one packet share.
func (ip IPv4) ID() uint16 { return binary.BigEndian.Uint16(ip[ipv4ID:]) }

// DontFragment returns the DF flag.
func (ip IPv4) DontFragment() bool { return ip.fragment()&ipv4DontFragment != 0 }

// MoreFragments returns the MF flag.
func (ip IPv4) MoreFragments() bool { return ip.fragment()&ipv4MoreFragments != 0 }

// FragmentOffset returns where the payload belongs in the whole packet's, in
// bytes: a multiple of 8 up to 65,528.
func (ip IPv4) FragmentOffset() int { return int(ip.fragment()&ipv4OffsetMask) * 8 }

func (ip IPv4) fragment() uint16 { return binary.BigEndian.Uint16(ip[ipv4Fragment:]) }

// TTL returns the time to live in hops.
func (ip IPv4) TTL() uint8 { return ip[ipv4TTL] }

// Protocol returns the payload's protocol, one of the Proto constants or another.
func (ip IPv4) Protocol() uint8 { return ip[ipv4Protocol] }

// Checksum returns the header checksum as it stands.
func (ip IPv4) Checksum() uint16 { return binary.BigEndian.Uint16(ip[ipv4Checksum:]) }

// ChecksumOK verifies the header checksum.
func (ip IPv4) ChecksumOK() bool {
	if ip.HeaderLen() == IPv4MinLen {
		return headerSum((*[IPv4MinLen]byte)(ip)) == 0xffff
	}
	return Fold(Sum(ip[:ip.HeaderLen()], 0)) == 0xffff
}

// Src returns the source address.
func (ip IPv4) Src() netip.Addr { return netip.AddrFrom4([4]byte(ip[ipv4Src:ipv4Dst])) }

// Dst returns the destination address.
func (ip IPv4) Dst() netip.Addr { return netip.AddrFrom4([4]byte(ip[ipv4Dst:IPv4MinLen])) }

// SrcUint32 returns the source address as a number: 10.0.0.1 is 0x0a000001.
func (ip IPv4) SrcUint32() uint32 { return binary.BigEndian.Uint32(ip[ipv4Src:]) }

// DstUint32 returns the destination address as a number.
func (ip IPv4) DstUint32() uint32 { return binary.BigEndian.Uint32(ip[ipv4Dst:]) }

// Payload returns what follows the header, up to the total length.
func (ip IPv4) Payload() []byte { return ip[ip.HeaderLen():ip.TotalLen()] }

// The setters leave the checksum as it was: UpdateChecksum, or an incremental
// update, comes after the last of them.

// SetTOS sets the type of service byte.
func (ip IPv4) SetTOS(v uint8) { ip[ipv4TOS] = v }

// SetTotalLen sets the packet's length in bytes, header included.
func (ip IPv4) SetTotalLen(v uint16) { binary.BigEndian.PutUint16(ip[ipv4TotalLen:], v) }

// SetID sets the identification.
func (ip IPv4) SetID(v uint16) { binary.BigEndian.PutUint16(ip[ipv4ID:], v) }

// SetFragment sets the fragment's offset in bytes, a multiple of 8, and MF; DF is
// cleared. The checksum is left alone.
func (ip IPv4) SetFragment(offset int, more bool) {
	v := uint16(offset / 8)
	if more {
		v |= ipv4MoreFragments
	}
	binary.BigEndian.PutUint16(ip[ipv4Fragment:], v)
}

// DropUncopiedOptions overwrites with no-operation the options that only a packet's
// first fragment has (RFC 791 section 3.1: those without the copied flag). The
// checksum is left alone.
func (ip IPv4) DropUncopiedOptions() {
	const end, nop, copied = 0, 1, 0x80
	for o := ip[IPv4MinLen:ip.HeaderLen()]; len(o) > 0 && o[0] != end; {
		n := 1
		if o[0] != nop {
			if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
				return // malformed: the destination will say so
			}
			n = int(o[1])
		}
		if o[0]&copied == 0 {
			for i := range o[:n] {
				o[i] = nop
			}
		}
		o = o[n:]
	}
}

// SetTTL sets the time to live.
func (ip IPv4) SetTTL(v uint8) { ip[ipv4TTL] = v }

// SetChecksum sets the header checksum.
func (ip IPv4) SetChecksum(v uint16) { binary.BigEndian.PutUint16(ip[ipv4Checksum:], v) }

// SetSrc sets the source address, which must be IPv4.
func (ip IPv4) SetSrc(a netip.Addr) { *(*[4]byte)(ip[ipv4Src:]) = a.As4() }

// SetDst sets the destination address, which must be IPv4.
func (ip IPv4) SetDst(a netip.Addr) { *(*[4]byte)(ip[ipv4Dst:]) = a.As4() }

// UpdateChecksum computes the header checksum anew.
func (ip IPv4) UpdateChecksum() {
	ip.SetChecksum(0)
	ip.SetChecksum(Checksum(ip[:ip.HeaderLen()], 0))
}

// DecrementTTL takes one hop off the TTL and updates the checksum to exactly what
// UpdateChecksum would compute. The caller has seen that the TTL is above 1
// (RFC 1812 section 5.3.1) and that the checksum is right.
func (ip IPv4) DecrementTTL() {
	old := binary.BigEndian.Uint16(ip[ipv4TTL:]) // TTL and protocol are one word
	ip[ipv4TTL]--
	ip.SetChecksum(Update16(ip.Checksum(), old, binary.BigEndian.Uint16(ip[ipv4TTL:])))
}

// SetECN sets the lower 2 bits of the type of service byte to v, which must have no
// others, and updates the checksum incrementally: a wrong one stays wrong.
func (ip IPv4) SetECN(v uint8) {
	old := binary.BigEndian.Uint16(ip[ipv4VersionIHL:]) // the TOS is this word's lower half
	ip[ipv4TOS] = ip[ipv4TOS]&^ECNMask | v
	ip.SetChecksum(Update16(ip.Checksum(), old, binary.BigEndian.Uint16(ip[ipv4VersionIHL:])))
}

// IPv4Fields are the fields of a header without options of a packet that is no
// fragment. TotalLen is in bytes, header included; Src and Dst must be IPv4.
type IPv4Fields struct {
	TOS          uint8
	TotalLen     uint16
	ID           uint16
	DontFragment bool
	TTL          uint8
	Protocol     uint8
	Src, Dst     netip.Addr
}

// Encode writes the header, checksum included; ip must have IPv4MinLen bytes.
func (ip IPv4) Encode(f *IPv4Fields) {
	ip[ipv4VersionIHL] = 4<<4 | IPv4MinLen/4
	ip.SetTOS(f.TOS)
	ip.SetTotalLen(f.TotalLen)
	ip.SetID(f.ID)
	var fragment uint16
	if f.DontFragment {
		fragment = ipv4DontFragment
	}
	binary.BigEndian.PutUint16(ip[ipv4Fragment:], fragment)
	ip.SetTTL(f.TTL)
	ip[ipv4Protocol] = f.Protocol
	ip.SetSrc(f.Src)
	ip.SetDst(f.Dst)
	ip.UpdateChecksum()
}

// String describes the header for people.
func (ip IPv4) String() string {
	if !ip.IsValid() {
		return invalid("ipv4", ip)
	}
	return fmt.Sprintf("ipv4 %v > %v protocol %d len %d ttl %d id %d df %t mf %t offset %d",
		ip.Src(), ip.Dst(), ip.Protocol(), ip.TotalLen(), ip.TTL(), ip.ID(),
		ip.DontFragment(), ip.MoreFragments(), ip.FragmentOffset())
}
