package wire

import (
	"encoding/binary"
	"fmt"
)

// TCP is a view over a TCP segment (RFC 9293). Getters and setters may be called
// only after IsValid (or Parse) said true.
type TCP []byte

const (
	tcpSrcPort    = 0
	tcpDstPort    = 2
	tcpSeq        = 4
	tcpAck        = 8
	tcpDataOffset = 12
	tcpFlags      = 13
	tcpWindow     = 14
	tcpChecksum   = 16
	tcpUrgent     = 18

	// TCPMinLen is the length of a header without options.
	TCPMinLen = 20

	// TCPChecksumOffset is where the checksum stands, as VirtioNet.CsumOffset
	// wants it.
	TCPChecksumOffset = tcpChecksum
)

// Bits of TCP.Flags.
const (
	TCPFin uint8 = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// IsValid says whether the header is there, options included.
func (t TCP) IsValid() bool {
	return len(t) >= TCPMinLen && t.DataOffset() >= TCPMinLen && t.DataOffset() <= len(t)
}

// SrcPort returns the source port.
func (t TCP) SrcPort() uint16 { return binary.BigEndian.Uint16(t[tcpSrcPort:]) }

// DstPort returns the destination port.
func (t TCP) DstPort() uint16 { return binary.BigEndian.Uint16(t[tcpDstPort:]) }

// Seq returns the sequence number of the first byte.
func (t TCP) Seq() uint32 { return binary.BigEndian.Uint32(t[tcpSeq:]) }

// Ack returns the acknowledgement number, which counts if TCPAck is set.
func (t TCP) Ack() uint32 { return binary.BigEndian.Uint32(t[tcpAck:]) }

// DataOffset returns the header's length in bytes, options included: 20 to 60.
func (t TCP) DataOffset() int { return int(t[tcpDataOffset]>>4) * 4 }

// Flags returns the bits TCPFin to TCPCwr.
func (t TCP) Flags() uint8 { return t[tcpFlags] }

// Window returns the receive window, unscaled.
func (t TCP) Window() uint16 { return binary.BigEndian.Uint16(t[tcpWindow:]) }

// Checksum returns the checksum as it stands.
func (t TCP) Checksum() uint16 { return binary.BigEndian.Uint16(t[tcpChecksum:]) }

// ChecksumOK verifies the checksum over the whole of t, given the sum of the
// pseudo header.
func (t TCP) ChecksumOK(pseudo uint32) bool { return Fold(Sum(t, pseudo)) == 0xffff }

// Urgent returns the urgent pointer, which counts if TCPUrg is set.
func (t TCP) Urgent() uint16 { return binary.BigEndian.Uint16(t[tcpUrgent:]) }

// Options returns the options, padding included.
func (t TCP) Options() []byte { return t[TCPMinLen:t.DataOffset()] }

// Payload returns what follows the header, to the end of t.
func (t TCP) Payload() []byte { return t[t.DataOffset():] }

// SetSrcPort sets the source port.
func (t TCP) SetSrcPort(v uint16) { binary.BigEndian.PutUint16(t[tcpSrcPort:], v) }

// SetDstPort sets the destination port.
func (t TCP) SetDstPort(v uint16) { binary.BigEndian.PutUint16(t[tcpDstPort:], v) }

// SetSeq sets the sequence number.
func (t TCP) SetSeq(v uint32) { binary.BigEndian.PutUint32(t[tcpSeq:], v) }

// SetAck sets the acknowledgement number.
func (t TCP) SetAck(v uint32) { binary.BigEndian.PutUint32(t[tcpAck:], v) }

// SetFlags sets the bits TCPFin to TCPCwr.
func (t TCP) SetFlags(v uint8) { t[tcpFlags] = v }

// SetWindow sets the receive window.
func (t TCP) SetWindow(v uint16) { binary.BigEndian.PutUint16(t[tcpWindow:], v) }

// SetChecksum sets the checksum.
func (t TCP) SetChecksum(v uint16) { binary.BigEndian.PutUint16(t[tcpChecksum:], v) }

// UpdateChecksum computes the checksum over the whole of t, given the sum of the
// pseudo header.
func (t TCP) UpdateChecksum(pseudo uint32) {
	t.SetChecksum(0)
	t.SetChecksum(Checksum(t, pseudo))
}

// TCPFields are the fields of a TCP header. DataOffset is in bytes, a multiple of
// 4 from 20 to 60; the options between TCPMinLen and it are the caller's to write.
type TCPFields struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	DataOffset       int
	Flags            uint8
	Window           uint16
	Checksum         uint16
	Urgent           uint16
}

// Encode writes the header without options; t must have TCPMinLen bytes.
func (t TCP) Encode(f *TCPFields) {
	t.SetSrcPort(f.SrcPort)
	t.SetDstPort(f.DstPort)
	t.SetSeq(f.Seq)
	t.SetAck(f.Ack)
	t[tcpDataOffset] = uint8(f.DataOffset/4) << 4
	t.SetFlags(f.Flags)
	t.SetWindow(f.Window)
	t.SetChecksum(f.Checksum)
	binary.BigEndian.PutUint16(t[tcpUrgent:], f.Urgent)
}

// String describes the header for people.
func (t TCP) String() string {
	if !t.IsValid() {
		return invalid("tcp", t)
	}
	return fmt.Sprintf("tcp %d > %d flags 0x%02x seq %d ack %d window %d header %d",
		t.SrcPort(), t.DstPort(), t.Flags(), t.Seq(), t.Ack(), t.Window(), t.DataOffset())
}
