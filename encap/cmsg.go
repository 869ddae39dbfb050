package encap

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read cmsg(3), ip(7) and ipv6(7) first.

// controlMessage carries an int or less beside a datagram: struct cmsghdr, then the value, of which CMSG_ALIGN
// makes 4 to 7 bytes padding.
type controlMessage struct {
	hdr   unix.Cmsghdr
	value [8]byte
}

// sendControl is what goes with a datagram: the size of the segments to cut it into (udp(7)), and the TOS or traffic
// class (ip(7), ipv6(7)).
type sendControl struct{ segment, tos controlMessage }

// newSendControl returns messages for a socket of local's family.
func newSendControl(local netip.Addr) (c sendControl) {
	c.segment.hdr.Level, c.segment.hdr.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	c.segment.hdr.SetLen(unix.CmsgLen(2))
	c.tos.hdr.Level, c.tos.hdr.Type = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	if local.Is4() {
		c.tos.hdr.Level, c.tos.hdr.Type = unix.IPPROTO_IP, unix.IP_TOS
	}
	c.tos.hdr.SetLen(unix.CmsgLen(4))
	return c
}

// attach makes of c what h is sent with. size 0 is no segmentation; tos 0 is the default.
func (c *sendControl) attach(h *unix.Msghdr, size int, tos uint8) {
	h.Control, h.Controllen = nil, 0
	n := 0
	if tos != 0 {
		binary.NativeEndian.PutUint32(c.tos.value[:], uint32(tos))
		h.Control = (*byte)(unsafe.Pointer(&c.tos))
		n += int(unsafe.Sizeof(c.tos))
	}
	if size != 0 { // it lies before the TOS
		binary.NativeEndian.PutUint16(c.segment.value[:], uint16(size))
		h.Control = (*byte)(unsafe.Pointer(c))
		n += int(unsafe.Sizeof(c.segment))
	}
	h.SetControllen(n)
}

// receiveControl is room for what the kernel tells about a datagram: its TOS or traffic class, and the size of the
// segments in it.
type receiveControl [2]controlMessage

// attach makes c the room for the control messages of h, before it is received.
func (c *receiveControl) attach(h *unix.Msghdr) {
	h.Control = (*byte)(unsafe.Pointer(c))
	h.SetControllen(int(unsafe.Sizeof(*c)))
}

// parse returns what the kernel wrote into the first n bytes; size is 0 for a datagram that isn't several in one.
// IPv4's TOS is one byte, all else an int.
func (c *receiveControl) parse(n int) (tos uint8, size int) {
	for i := range min(n/int(unsafe.Sizeof(c[0])), len(c)) {
		switch m := &c[i]; {
		case m.hdr.Level == unix.SOL_UDP && m.hdr.Type == unix.UDP_GRO:
			size = int(binary.NativeEndian.Uint32(m.value[:]))
		case m.hdr.Level == unix.IPPROTO_IP:
			tos = m.value[0]
		case m.hdr.Level == unix.IPPROTO_IPV6:
			tos = uint8(binary.NativeEndian.Uint32(m.value[:]))
		}
	}
	return tos, size
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
