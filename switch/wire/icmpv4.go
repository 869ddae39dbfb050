package wire

import (
	"encoding/binary"
	"fmt"
)

// ICMPv4 is a view over an ICMP message (RFC 792). Getters and setters may be
// called only after IsValid (or Parse) said true.
type ICMPv4 []byte

// Both ICMPs have the same layout.
const (
	icmpType     = 0
	icmpCode     = 1
	icmpChecksum = 2
	icmpRest     = 4 // the second word, by type

	// ICMPv4Len is the length of the header.
	ICMPv4Len = 8
)

// Values of ICMPv4.Type.
const (
	ICMPv4EchoReply    uint8 = 0
	ICMPv4Unreachable  uint8 = 3
	ICMPv4Redirect     uint8 = 5
	ICMPv4Echo         uint8 = 8
	ICMPv4TimeExceeded uint8 = 11
	ICMPv4ParamProblem uint8 = 12
)

// Values of ICMPv4.Code for ICMPv4Unreachable (RFC 792, RFC 1812 section 5.2.7.1)
// and ICMPv4TimeExceeded.
const (
	ICMPv4NetUnreachable   uint8 = 0
	ICMPv4HostUnreachable  uint8 = 1
	ICMPv4ProtoUnreachable uint8 = 2
	ICMPv4PortUnreachable  uint8 = 3
	ICMPv4FragNeeded       uint8 = 4
	ICMPv4AdminProhibited  uint8 = 13

	ICMPv4TTLExceeded        uint8 = 0
	ICMPv4ReassemblyExceeded uint8 = 1
)

// IsValid says whether the header is there.
func (m ICMPv4) IsValid() bool { return len(m) >= ICMPv4Len }

// Type returns the message type.
func (m ICMPv4) Type() uint8 { return m[icmpType] }

// Code returns the type's subdivision.
func (m ICMPv4) Code() uint8 { return m[icmpCode] }

// Checksum returns the checksum as it stands.
func (m ICMPv4) Checksum() uint16 { return binary.BigEndian.Uint16(m[icmpChecksum:]) }

// ChecksumOK verifies the checksum over the whole of m.
func (m ICMPv4) ChecksumOK() bool { return Fold(Sum(m, 0)) == 0xffff }

// ID returns the identifier of an echo.
func (m ICMPv4) ID() uint16 { return binary.BigEndian.Uint16(m[icmpRest:]) }

// Seq returns the sequence number of an echo.
func (m ICMPv4) Seq() uint16 { return binary.BigEndian.Uint16(m[icmpRest+2:]) }

// MTU returns the next hop's MTU of ICMPv4FragNeeded (RFC 1191 section 4), in
// bytes of the IP packet; 0 from routers older than that.
func (m ICMPv4) MTU() uint16 { return m.Seq() }

// Payload returns what follows the header: an echo's data, or the quoted packet.
func (m ICMPv4) Payload() []byte { return m[ICMPv4Len:] }

// SetType sets the message type.
func (m ICMPv4) SetType(v uint8) { m[icmpType] = v }

// SetID sets the identifier of an echo.
func (m ICMPv4) SetID(v uint16) { binary.BigEndian.PutUint16(m[icmpRest:], v) }

// SetChecksum sets the checksum.
func (m ICMPv4) SetChecksum(v uint16) { binary.BigEndian.PutUint16(m[icmpChecksum:], v) }

// UpdateChecksum computes the checksum over the whole of m.
func (m ICMPv4) UpdateChecksum() {
	m.SetChecksum(0)
	m.SetChecksum(Checksum(m, 0))
}

// ICMPv4Fields are the fields of an ICMP header. Rest is the second word: an
// echo's ID<<16 | Seq, ICMPv4FragNeeded's MTU, otherwise mostly 0.
type ICMPv4Fields struct {
	Type, Code uint8
	Rest       uint32
}

// Encode writes the header; m must have ICMPv4Len bytes. The checksum is zero
// until UpdateChecksum, which comes after the payload.
func (m ICMPv4) Encode(f *ICMPv4Fields) {
	m.SetType(f.Type)
	m[icmpCode] = f.Code
	m.SetChecksum(0)
	binary.BigEndian.PutUint32(m[icmpRest:], f.Rest)
}

// String describes the header for people.
func (m ICMPv4) String() string {
	if !m.IsValid() {
		return invalid("icmpv4", m)
	}
	return fmt.Sprintf("icmpv4 type %d code %d rest 0x%08x len %d", m.Type(), m.Code(), binary.BigEndian.Uint32(m[icmpRest:]), len(m))
}
