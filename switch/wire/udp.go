package wire

import (
	"encoding/binary"
	"fmt"
)

// UDP is a view over a UDP datagram (RFC 768). Getters and setters may be called
// only after IsValid (or Parse) said true.
type UDP []byte

const (
	udpSrcPort  = 0
	udpDstPort  = 2
	udpLength   = 4
	udpChecksum = 6

	// UDPLen is the length of the header.
	UDPLen = 8

	// UDPChecksumOffset is where the checksum stands, as VirtioNet.CsumOffset
	// wants it.
	UDPChecksumOffset = udpChecksum
)

// IsValid says whether the header is there and the length field is inside u.
// Parse is laxer where it must be: in the first of several fragments the length
// exceeds what is there, in a super-frame it may be 0.
func (u UDP) IsValid() bool {
	return len(u) >= UDPLen && u.Length() >= UDPLen && int(u.Length()) <= len(u)
}

// SrcPort returns the source port.
func (u UDP) SrcPort() uint16 { return binary.BigEndian.Uint16(u[udpSrcPort:]) }

// DstPort returns the destination port.
func (u UDP) DstPort() uint16 { return binary.BigEndian.Uint16(u[udpDstPort:]) }

// Length returns the datagram's length in bytes, header included.
func (u UDP) Length() uint16 { return binary.BigEndian.Uint16(u[udpLength:]) }

// Checksum returns the checksum as it stands; 0 means none.
func (u UDP) Checksum() uint16 { return binary.BigEndian.Uint16(u[udpChecksum:]) }

// ChecksumOK verifies the checksum over the whole of u, given the sum of the
// pseudo header; none counts as right (over IPv6 the caller decides, RFC 6935).
func (u UDP) ChecksumOK(pseudo uint32) bool {
	return u.Checksum() == 0 || Fold(Sum(u, pseudo)) == 0xffff
}

// Payload returns what follows the header, to the end of u.
func (u UDP) Payload() []byte { return u[UDPLen:] }

// SetSrcPort sets the source port.
func (u UDP) SetSrcPort(v uint16) { binary.BigEndian.PutUint16(u[udpSrcPort:], v) }

// SetDstPort sets the destination port.
func (u UDP) SetDstPort(v uint16) { binary.BigEndian.PutUint16(u[udpDstPort:], v) }

// SetLength sets the datagram's length in bytes, header included.
func (u UDP) SetLength(v uint16) { binary.BigEndian.PutUint16(u[udpLength:], v) }

// SetChecksum sets the checksum.
func (u UDP) SetChecksum(v uint16) { binary.BigEndian.PutUint16(u[udpChecksum:], v) }

// UpdateChecksum computes the checksum over the whole of u, given the sum of the
// pseudo header. A computed 0 is sent as 0xffff, since 0 means none.
func (u UDP) UpdateChecksum(pseudo uint32) {
	u.SetChecksum(0)
	sum := Checksum(u, pseudo)
	if sum == 0 {
		sum = 0xffff
	}
	u.SetChecksum(sum)
}

// UDPFields are the fields of a UDP header. Length is in bytes, header included.
type UDPFields struct {
	SrcPort, DstPort uint16
	Length           uint16
	Checksum         uint16
}

// Encode writes the header; u must have UDPLen bytes.
func (u UDP) Encode(f *UDPFields) {
	u.SetSrcPort(f.SrcPort)
	u.SetDstPort(f.DstPort)
	u.SetLength(f.Length)
	u.SetChecksum(f.Checksum)
}

// String describes the header for people.
func (u UDP) String() string {
	if !u.IsValid() {
		return invalid("udp", u)
	}
	return fmt.Sprintf("udp %d > %d len %d checksum 0x%04x", u.SrcPort(), u.DstPort(), u.Length(), u.Checksum())
}
