package wire

import (
	"encoding/binary"
	"fmt"
)

// VirtioNet is a view over struct virtio_net_hdr (linux/virtio_net.h), which
// stands before the frame on a TAP with IFF_VNET_HDR and on an AF_PACKET socket
// with PACKET_VNET_HDR. The kernel takes it in the machine's own byte order.
// Getters may be called only after IsValid said true, which speaks of the length
// alone: what the fields claim about the frame is for the port to check.
type VirtioNet []byte

const (
	virtioFlags      = 0
	virtioGSOType    = 1
	virtioHdrLen     = 2
	virtioGSOSize    = 4
	virtioCsumStart  = 6
	virtioCsumOffset = 8

	// VirtioNetLen is the length of the header.
	VirtioNetLen = 10
)

// Bits of VirtioNet.Flags.
const (
	NeedsCsum uint8 = 1 // the checksum at CsumStart+CsumOffset is partial: the pseudo header's sum
	DataValid uint8 = 2 // the checksum was verified
)

// Values of VirtioNet.GSOType; GSOECN may be added to the TCP ones.
const (
	GSONone  uint8 = 0
	GSOTCPv4 uint8 = 1
	GSOTCPv6 uint8 = 4
	GSOUDPL4 uint8 = 5 // one datagram per segment (USO), unlike UDP fragmentation (3)
	GSOECN   uint8 = 0x80
)

// IsValid says whether the header is there.
func (v VirtioNet) IsValid() bool { return len(v) >= VirtioNetLen }

// Flags returns the bits NeedsCsum and DataValid.
func (v VirtioNet) Flags() uint8 { return v[virtioFlags] }

// GSOType returns what kind of super-frame follows.
func (v VirtioNet) GSOType() uint8 { return v[virtioGSOType] }

// HdrLen returns the length of Ethernet, IP and L4 headers in bytes; the tun
// driver's value is a hint and may be wrong.
func (v VirtioNet) HdrLen() uint16 { return binary.NativeEndian.Uint16(v[virtioHdrLen:]) }

// GSOSize returns the L4 payload of each segment but the last, in bytes.
func (v VirtioNet) GSOSize() uint16 { return binary.NativeEndian.Uint16(v[virtioGSOSize:]) }

// CsumStart returns where checksumming starts, in bytes from the frame's first.
func (v VirtioNet) CsumStart() uint16 { return binary.NativeEndian.Uint16(v[virtioCsumStart:]) }

// CsumOffset returns where the checksum goes, in bytes from CsumStart.
func (v VirtioNet) CsumOffset() uint16 { return binary.NativeEndian.Uint16(v[virtioCsumOffset:]) }

// VirtioNetFields are the fields of the header; the zero value is that of a plain
// frame whose checksums are complete.
type VirtioNetFields struct {
	Flags, GSOType                         uint8
	HdrLen, GSOSize, CsumStart, CsumOffset uint16
}

// Encode writes the header; v must have VirtioNetLen bytes.
func (v VirtioNet) Encode(f *VirtioNetFields) {
	v[virtioFlags] = f.Flags
	v[virtioGSOType] = f.GSOType
	binary.NativeEndian.PutUint16(v[virtioHdrLen:], f.HdrLen)
	binary.NativeEndian.PutUint16(v[virtioGSOSize:], f.GSOSize)
	binary.NativeEndian.PutUint16(v[virtioCsumStart:], f.CsumStart)
	binary.NativeEndian.PutUint16(v[virtioCsumOffset:], f.CsumOffset)
}

// String describes the header for people.
func (v VirtioNet) String() string {
	if !v.IsValid() {
		return invalid("virtio_net", v)
	}
	return fmt.Sprintf("virtio_net flags %d gso type %d size %d headers %d csum start %d offset %d",
		v.Flags(), v.GSOType(), v.GSOSize(), v.HdrLen(), v.CsumStart(), v.CsumOffset())
}
