package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// ARP is a view over an ARP packet for IPv4 over Ethernet (RFC 826). Getters and
// setters may be called only after IsValid (or Parse) said true.
type ARP []byte

const (
	arpHardware  = 0
	arpProtocol  = 2
	arpHLen      = 4
	arpPLen      = 5
	arpOp        = 6
	arpSenderMAC = 8
	arpSenderIP  = 14
	arpTargetMAC = 18
	arpTargetIP  = 24

	arpHardwareEthernet = 1

	// ARPLen is the length of a packet.
	ARPLen = 28
)

// Values of ARP.Op.
const (
	ARPRequest uint16 = 1
	ARPReply   uint16 = 2
)

// IsValid says whether the packet is there and speaks of IPv4 over Ethernet.
func (a ARP) IsValid() bool { return a.fault() == FaultNone }

func (a ARP) fault() Fault {
	switch {
	case len(a) < ARPLen:
		return FaultShortARP
	case binary.BigEndian.Uint16(a[arpHardware:]) != arpHardwareEthernet,
		binary.BigEndian.Uint16(a[arpProtocol:]) != EtherTypeIPv4,
		a[arpHLen] != 6, a[arpPLen] != 4:
		return FaultARPFields
	}
	return FaultNone
}

// Op returns the operation: ARPRequest, ARPReply or another.
func (a ARP) Op() uint16 { return binary.BigEndian.Uint16(a[arpOp:]) }

// SenderMAC returns the sender's hardware address.
func (a ARP) SenderMAC() MAC { return MAC(a[arpSenderMAC:arpSenderIP]) }

// SenderIP returns the sender's protocol address: 0.0.0.0 in a probe (RFC 5227).
func (a ARP) SenderIP() netip.Addr { return netip.AddrFrom4([4]byte(a[arpSenderIP:arpTargetMAC])) }

// TargetMAC returns the target's hardware address, meaningless in a request.
func (a ARP) TargetMAC() MAC { return MAC(a[arpTargetMAC:arpTargetIP]) }

// TargetIP returns the target's protocol address.
func (a ARP) TargetIP() netip.Addr { return netip.AddrFrom4([4]byte(a[arpTargetIP:ARPLen])) }

// SetOp sets the operation.
func (a ARP) SetOp(v uint16) { binary.BigEndian.PutUint16(a[arpOp:], v) }

// SetSenderMAC sets the sender's hardware address.
func (a ARP) SetSenderMAC(m MAC) { *(*MAC)(a[arpSenderMAC:]) = m }

// SetSenderIP sets the sender's protocol address, which must be IPv4.
func (a ARP) SetSenderIP(ip netip.Addr) { *(*[4]byte)(a[arpSenderIP:]) = ip.As4() }

// SetTargetMAC sets the target's hardware address.
func (a ARP) SetTargetMAC(m MAC) { *(*MAC)(a[arpTargetMAC:]) = m }

// SetTargetIP sets the target's protocol address, which must be IPv4.
func (a ARP) SetTargetIP(ip netip.Addr) { *(*[4]byte)(a[arpTargetIP:]) = ip.As4() }

// ARPFields are the fields of an ARP packet. Both addresses must be IPv4.
type ARPFields struct {
	Op        uint16
	SenderMAC MAC
	SenderIP  netip.Addr
	TargetMAC MAC
	TargetIP  netip.Addr
}

// Encode writes the packet; a must have ARPLen bytes.
func (a ARP) Encode(f *ARPFields) {
	binary.BigEndian.PutUint16(a[arpHardware:], arpHardwareEthernet)
	binary.BigEndian.PutUint16(a[arpProtocol:], EtherTypeIPv4)
	a[arpHLen], a[arpPLen] = 6, 4
	a.SetOp(f.Op)
	a.SetSenderMAC(f.SenderMAC)
	a.SetSenderIP(f.SenderIP)
	a.SetTargetMAC(f.TargetMAC)
	a.SetTargetIP(f.TargetIP)
}

// String describes the packet for people.
func (a ARP) String() string {
	if !a.IsValid() {
		return invalid("arp", a)
	}
	switch a.Op() {
	case ARPRequest:
		return fmt.Sprintf("arp who has %v tell %v at %v", a.TargetIP(), a.SenderIP(), a.SenderMAC())
	case ARPReply:
		return fmt.Sprintf("arp %v is at %v to %v at %v", a.SenderIP(), a.SenderMAC(), a.TargetIP(), a.TargetMAC())
	}
	return fmt.Sprintf("arp op %d", a.Op())
}
