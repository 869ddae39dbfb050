package wire

import (
	"encoding/binary"
	"fmt"
)

// ICMPv6 is a view over an ICMPv6 message (RFC 4443). Getters and setters may be
// called only after IsValid (or Parse) said true; those of the second word (ID,
// Seq, MTU, Payload) only if len(m) is at least ICMPv6Len as well, since a message
// of an unknown type may be shorter.
type ICMPv6 []byte

const (
	// ICMPv6MinLen is the length of type, code and checksum, which every
	// message has.
	ICMPv6MinLen = 4

	// ICMPv6Len is the length of the header of every message named below.
	ICMPv6Len = 8
)

// Values of ICMPv6.Type (RFC 4443, RFC 2710 and 3810, RFC 4861).
const (
	ICMPv6Unreachable     uint8 = 1
	ICMPv6PacketTooBig    uint8 = 2
	ICMPv6TimeExceeded    uint8 = 3
	ICMPv6ParamProblem    uint8 = 4
	ICMPv6Echo            uint8 = 128
	ICMPv6EchoReply       uint8 = 129
	ICMPv6MLDQuery        uint8 = 130
	ICMPv6MLDReport       uint8 = 131
	ICMPv6MLDDone         uint8 = 132
	ICMPv6RouterSolicit   uint8 = 133
	ICMPv6RouterAdvert    uint8 = 134
	ICMPv6NeighborSolicit uint8 = 135
	ICMPv6NeighborAdvert  uint8 = 136
	ICMPv6Redirect        uint8 = 137
	ICMPv6MLDv2Report     uint8 = 143
)

// Values of ICMPv6.Code for ICMPv6Unreachable (RFC 4443 section 3.1) and
// ICMPv6TimeExceeded (section 3.3).
const (
	ICMPv6NoRoute            uint8 = 0
	ICMPv6AdminProhibited    uint8 = 1
	ICMPv6BeyondScope        uint8 = 2
	ICMPv6AddressUnreachable uint8 = 3
	ICMPv6PortUnreachable    uint8 = 4

	ICMPv6HopLimitExceeded   uint8 = 0
	ICMPv6ReassemblyExceeded uint8 = 1
)

// IsValid says whether type, code and checksum are there.
func (m ICMPv6) IsValid() bool { return len(m) >= ICMPv6MinLen }

// Type returns the message type; below 128 it is an error.
func (m ICMPv6) Type() uint8 { return m[icmpType] }

// Code returns the type's subdivision.
func (m ICMPv6) Code() uint8 { return m[icmpCode] }

// Checksum returns the checksum as it stands.
func (m ICMPv6) Checksum() uint16 { return binary.BigEndian.Uint16(m[icmpChecksum:]) }

// ChecksumOK verifies the checksum over the whole of m, given the sum of the
// pseudo header.
func (m ICMPv6) ChecksumOK(pseudo uint32) bool { return Fold(Sum(m, pseudo)) == 0xffff }

// ID returns the identifier of an echo.
func (m ICMPv6) ID() uint16 { return binary.BigEndian.Uint16(m[icmpRest:]) }

// Seq returns the sequence number of an echo.
func (m ICMPv6) Seq() uint16 { return binary.BigEndian.Uint16(m[icmpRest+2:]) }

// MTU returns the next hop's MTU of ICMPv6PacketTooBig, in bytes of the packet.
func (m ICMPv6) MTU() uint32 { return binary.BigEndian.Uint32(m[icmpRest:]) }

// Payload returns what follows the header: an echo's data, or the quoted packet.
func (m ICMPv6) Payload() []byte { return m[ICMPv6Len:] }

// SetType sets the message type.
func (m ICMPv6) SetType(v uint8) { m[icmpType] = v }

// SetID sets the identifier of an echo.
func (m ICMPv6) SetID(v uint16) { binary.BigEndian.PutUint16(m[icmpRest:], v) }

// SetChecksum sets the checksum.
func (m ICMPv6) SetChecksum(v uint16) { binary.BigEndian.PutUint16(m[icmpChecksum:], v) }

// UpdateChecksum computes the checksum over the whole of m, given the sum of the
// pseudo header.
func (m ICMPv6) UpdateChecksum(pseudo uint32) {
	m.SetChecksum(0)
	m.SetChecksum(Checksum(m, pseudo))
}

// ICMPv6Fields are the fields of an ICMPv6 header. Rest is the second word: an
// echo's ID<<16 | Seq, ICMPv6PacketTooBig's MTU, otherwise mostly 0.
type ICMPv6Fields struct {
	Type, Code uint8
	Rest       uint32
}

// Encode writes the header; m must have ICMPv6Len bytes. The checksum is zero
// until UpdateChecksum, which comes after the payload.
func (m ICMPv6) Encode(f *ICMPv6Fields) {
	m.SetType(f.Type)
	m[icmpCode] = f.Code
	m.SetChecksum(0)
	binary.BigEndian.PutUint32(m[icmpRest:], f.Rest)
}

// String describes the header for people.
func (m ICMPv6) String() string {
	if !m.IsValid() {
		return invalid("icmpv6", m)
	}
	return fmt.Sprintf("icmpv6 type %d code %d len %d", m.Type(), m.Code(), len(m))
}
