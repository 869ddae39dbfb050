package encap

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read cmsg(3), ip(7) and ipv6(7) first.

// tosMessage is the control message of ip(7) or ipv6(7) that carries a TOS or a traffic class beside a
// datagram: struct cmsghdr, then an int; IPv4's of a received datagram is one byte instead.
type tosMessage struct {
	hdr   unix.Cmsghdr
	value [8]byte // of which CMSG_ALIGN makes 4 or 7 padding
}

// newTOSMessage returns a message for sendmmsg on a socket of local's family.
func newTOSMessage(local netip.Addr, tos uint8) (m tosMessage) {
	m.hdr.Level, m.hdr.Type = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	if local.Is4() {
		m.hdr.Level, m.hdr.Type = unix.IPPROTO_IP, unix.IP_TOS
	}
	m.hdr.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(m.value[:], uint32(tos))
	return m
}

// tos returns the value of a message that the kernel wrote.
func (m *tosMessage) tos() uint8 {
	if m.hdr.Level == unix.IPPROTO_IP {
		return m.value[0]
	}
	return uint8(binary.NativeEndian.Uint32(m.value[:]))
}

// attach makes m part of the message that h describes, to be sent or to be filled in.
func (m *tosMessage) attach(h *unix.Msghdr) {
	h.Control = (*byte)(unsafe.Pointer(m))
	h.SetControllen(int(unsafe.Sizeof(*m)))
}

// sockaddr holds struct sockaddr_in or sockaddr_in6 of netinet/in.h: the family in the machine's byte
// order, the port in network order, then the address, which in sockaddr_in6 comes behind a flow label.
type sockaddr [unix.SizeofSockaddrInet6]byte

// encode sets all of a and returns the length of the structure for the family.
func (a *sockaddr) encode(to netip.AddrPort) (length uint32) {
	*a = sockaddr{}
	binary.BigEndian.PutUint16(a[2:], to.Port())
	if to.Addr().Is4() {
		binary.NativeEndian.PutUint16(a[0:], unix.AF_INET)
		*(*[4]byte)(a[4:]) = to.Addr().As4()
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(a[0:], unix.AF_INET6)
	*(*[16]byte)(a[8:]) = to.Addr().As16()
	return unix.SizeofSockaddrInet6
}

// addr returns the address.
func (a *sockaddr) addr() netip.Addr {
	if binary.NativeEndian.Uint16(a[0:]) == unix.AF_INET {
		return netip.AddrFrom4([4]byte(a[4:]))
	}
	return netip.AddrFrom16([16]byte(a[8:]))
}
