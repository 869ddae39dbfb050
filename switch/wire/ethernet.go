package wire

import (
	"encoding/binary"
	"fmt"
)

// Ethernet is a view over an Ethernet II frame without preamble and checksum.
// Getters and setters may be called only after IsValid (or Parse) said true.
type Ethernet []byte

const (
	ethernetDst  = 0
	ethernetSrc  = 6
	ethernetType = 12

	// EthernetLen is the length of the header, untagged.
	EthernetLen = 14
)

// EtherTypes that the switch tells apart. VLAN is an 802.1Q tag, QinQ an
// 802.1ad one.
const (
	EtherTypeIPv4 uint16 = 0x0800
	EtherTypeARP  uint16 = 0x0806
	EtherTypeVLAN uint16 = 0x8100
	EtherTypeIPv6 uint16 = 0x86dd
	EtherTypeQinQ uint16 = 0x88a8
)

// IsValid says whether the header is there.
func (e Ethernet) IsValid() bool { return len(e) >= EthernetLen }

// Dst returns the destination address.
func (e Ethernet) Dst() MAC { return MAC(e[ethernetDst:ethernetSrc]) }

// Src returns the source address.
func (e Ethernet) Src() MAC { return MAC(e[ethernetSrc:ethernetType]) }

// EtherType returns the type field; below 0x0600 it is an 802.3 length.
func (e Ethernet) EtherType() uint16 { return binary.BigEndian.Uint16(e[ethernetType:]) }

// Payload returns what follows the header, padding included.
func (e Ethernet) Payload() []byte { return e[EthernetLen:] }

// SetDst sets the destination address.
func (e Ethernet) SetDst(m MAC) { *(*MAC)(e[ethernetDst:ethernetSrc]) = m }

// SetSrc sets the source address.
func (e Ethernet) SetSrc(m MAC) { *(*MAC)(e[ethernetSrc:ethernetType]) = m }

// SetEtherType sets the type field.
func (e Ethernet) SetEtherType(t uint16) { binary.BigEndian.PutUint16(e[ethernetType:], t) }

// EthernetFields are the fields of an Ethernet header.
type EthernetFields struct {
	Dst, Src  MAC
	EtherType uint16
}

// Encode writes the header; e must have EthernetLen bytes.
func (e Ethernet) Encode(f *EthernetFields) {
	e.SetDst(f.Dst)
	e.SetSrc(f.Src)
	e.SetEtherType(f.EtherType)
}

// String describes the header for people.
func (e Ethernet) String() string {
	if !e.IsValid() {
		return invalid("ethernet", e)
	}
	return fmt.Sprintf("ethernet %v > %v type 0x%04x", e.Src(), e.Dst(), e.EtherType())
}
