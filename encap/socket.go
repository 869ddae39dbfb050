package encap

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Read ip(7), ipv6(7), udp(7) and socket(7) first.

// Source ports lie between the end of Linux's default range of ephemeral ports (60999) and the end of the
// range that RFC 7348 section 5 recommends (49152 to 65535), so that nobody else picks one by accident.
const firstSourcePort, lastSourcePort = 61000, 65535

// lanes is the number of source sockets of a worker, hence of outer 4-tuples towards one peer, which the
// peer's receive queues and the underlay's parallel paths hash. Each has messages of its own, so the more there are, the
// shorter are the trains of a burst of many flows: a small frame of 64 flows costs the two switches 1.65 us with 16,
// 1.37 us with 8 and 1.15 us with 4 (Linux 6.18). 8 reach 3.6 of 4 queues of a peer on average, and miss one of two paths
// once in 128 times; with 4 it would be 2.7, and once in 8.
const lanes = 8

// socketBuffer is what a socket may hold, in bytes. The kernel doubles it and charges about 2.3 KiB for a
// datagram of 1,500 bytes, so 4 MiB is 3,600 datagrams: 4 ms of 10 Gb/s in which a receiving worker may
// be away, or all segments of a burst of 64 super-frames (64 × 44 = 2,816) that the underlay holds back.
const socketBuffer = 4 << 20

// option is a socket option with the name that an error shows.
type option struct {
	text               string
	level, name, value int
}

// The buffers are forced: net.core.rmem_max and wmem_max, 208 KiB by default, are meant for programs
// without privileges.
var (
	bigReceiveBuffer = option{"SO_RCVBUFFORCE", unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer}
	bigSendBuffer    = option{"SO_SNDBUFFORCE", unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer}
	// Nobody reads what strangers send to a source port; the kernel makes of 0 its minimum, 2.3 KiB.
	noReceiveBuffer = option{"SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF, 0}
	shareAddress    = option{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}
)

// receiveOptions have the kernel hand over several datagrams of a sender in one piece if merge is set, say which ECN mark they came
// with, and accept UDP checksums of zero. Over IPv4 it always does; over IPv6 it must be told, and RFC 6935 and 6936 allow it for tunnels only,
// because nothing else then protects the outer addresses and ports. What RFC 6936 section 5 asks for is
// here: the socket is bound to one address, a datagram is taken only from the address of a known peer and
// for a VNI of this node, and the inner packet's own checksums reach the pods as they were.
func receiveOptions(local netip.Addr, merge bool) []option {
	options := []option{bigReceiveBuffer, {"UDP_GRO", unix.IPPROTO_UDP, unix.UDP_GRO, 0}}
	if merge {
		options[1].value = 1
	}
	if local.Is4() {
		return append(options, option{"IP_RECVTOS", unix.IPPROTO_IP, unix.IP_RECVTOS, 1})
	}
	return append(options,
		option{"IPV6_RECVTCLASS", unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1},
		option{"UDP_NO_CHECK6_RX", unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1})
}

// sourceOptions make the kernel set DF, or over IPv6 not fragment, and compare with the device's MTU alone
// (RFC 7348 section 4.3: a VTEP must not fragment). PROBE instead of DO: anybody can forge the ICMP
// message that would shrink a path MTU.
func sourceOptions(local netip.Addr) []option {
	probe := option{"IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE}
	if local.Is4() {
		probe = option{"IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE}
	}
	return []option{bigSendBuffer, noReceiveBuffer, probe}
}

// listen binds n sockets to one address, among which the kernel spreads flows. The first is bound alone
// and shared afterwards: with SO_REUSEPORT from the start, the kernel would let it share the port with
// another process of the same user, silently, each getting a part of the flows. So a second switch is
// refused even while the first one shares its port among its own workers. What remains is a foreign program
// of our user that sets SO_REUSEPORT itself and binds after us; Linux has no way to forbid that. After an
// error some may be open.
//
// Sockets that are open already come first, and as many as are missing are bound beside them. There may be more than n:
// what arrived in each of them is to be read.
func listen(open []int, local netip.AddrPort, n int, options ...option) (fds []int, err error) {
	for _, fd := range open {
		if err := adopt(fd, local, options...); err != nil {
			return open, err
		}
	}
	fds = open
	if len(fds) == 0 {
		fd, err := openUDP(local, options...)
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("UDP port %d at %v is taken by %s; stop that, or choose another port on all nodes: %w",
				local.Port(), local.Addr(), holderOf(local), err)
		}
		if err != nil {
			return nil, err
		}
		fds = []int{fd}
	}
	if len(fds) >= n {
		return fds, nil
	}
	for _, fd := range fds { // one alone doesn't share yet
		if err = setOptions(fd, shareAddress); err != nil {
			return fds, err
		}
	}
	for len(fds) < n {
		fd, err := openUDP(local, append(options, shareAddress)...)
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// adopt has an open socket be what openUDP returns.
func adopt(fd int, local netip.AddrPort, options ...option) error {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("adopt a socket: getsockname: %w", err)
	}
	var bound netip.AddrPort
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		bound = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		bound = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	if bound != local {
		return fmt.Errorf("adopt a socket: it is bound to %v, want %v", bound, local)
	}
	return setOptions(fd, options...)
}

// openSources opens n sockets to send from, on the first source ports that are free. After an error some
// may be open.
func openSources(local netip.Addr, n int) (fds []int, err error) {
	options := sourceOptions(local)
	for p := firstSourcePort; len(fds) < n; p++ {
		if p > lastSourcePort {
			return fds, fmt.Errorf("only %d of %d source ports are free among UDP ports %d to %d at %v; 'ss -uanp' shows who has them",
				len(fds), n, firstSourcePort, lastSourcePort, local)
		}
		fd, err := openUDP(netip.AddrPortFrom(local, uint16(p)), options...)
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// openUDP returns a non-blocking socket with the options, bound to local.
func openUDP(local netip.AddrPort, options ...option) (int, error) {
	family := unix.AF_INET6
	if local.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open UDP socket: %w", err)
	}
	if err = setOptions(fd, options...); err == nil {
		err = bind(fd, local)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setOptions(fd int, options ...option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set socket option %s to %d (have we CAP_NET_ADMIN?): %w", o.text, o.value, err)
		}
	}
	return nil
}

func bind(fd int, local netip.AddrPort) error {
	var sa unix.Sockaddr
	if a := local.Addr(); a.Is4() {
		sa = &unix.SockaddrInet4{Addr: a.As4(), Port: int(local.Port())}
	} else {
		sa = &unix.SockaddrInet6{Addr: a.As16(), Port: int(local.Port())}
	}
	err := unix.Bind(fd, sa)
	if err == unix.EADDRNOTAVAIL {
		return fmt.Errorf("bind to UDP %v: this node hasn't that address ('ip address' lists them; over IPv6 it may still be tentative): %w", local, err)
	}
	if err != nil {
		return fmt.Errorf("bind to UDP %v: %w", local, err)
	}
	return nil
}
