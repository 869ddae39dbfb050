package vswitch

import (
	"encoding/binary"
	"net/netip"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// Read RFC 792, RFC 1812 section 4.3.2 and RFC 4443 first.

// icmpCause is an error in both families.
type icmpCause struct{ type4, code4, type6, code6 uint8 }

var (
	timeExceeded    = icmpCause{wire.ICMPv4TimeExceeded, 0, wire.ICMPv6TimeExceeded, 0}
	netUnreachable  = icmpCause{wire.ICMPv4Unreachable, 0, wire.ICMPv6Unreachable, 0}
	hostUnreachable = icmpCause{wire.ICMPv4Unreachable, 1, wire.ICMPv6Unreachable, 3}
	tooBig          = icmpCause{wire.ICMPv4Unreachable, 4, wire.ICMPv6PacketTooBig, 0} // RFC 1191, RFC 8201
)

const (
	// A datagram with an ICMPv4 error is at most 576 bytes (RFC 1812 section 4.3.2.3), one with an
	// ICMPv6 error at most the IPv6 minimum MTU (RFC 4443 section 2.4 c).
	quote4 = 576 - wire.IPv4MinLen - wire.ICMPv4Len
	quote6 = 1280 - wire.IPv6Len - icmpErrorLen
	// icmpErrorLen is the header of an ICMP error in both families, before what is quoted.
	icmpErrorLen = 8
	originTTL    = 64 // RFC 1700, the default of every system
)

// icmpError tells the sender of a packet why it got no further, from this node's gateway address.
func (s *slowWorker) icmpError(net *network, p *punt, c icmpCause) {
	limit := p.in.errors
	if c == tooBig {
		limit = p.in.tooBig
	}
	if !mayAnswer(p) || !limit.take(s.now, 1) {
		return
	}
	to := srcAddr(&p.parsed)
	from, ok := net.source(to, p.in.role)
	if !ok {
		return
	}
	packet := p.bytes()[p.parsed.L3:min(int(p.parsed.End), p.n)]
	s.originateIP(net, from, to, func(l4 []byte) (uint8, int) {
		if to.Is4() {
			packet = packet[:min(len(packet), quote4)]
			n := copy(l4[icmpErrorLen:], packet) + icmpErrorLen
			l4[0], l4[1] = c.type4, c.code4
			encodeRest(l4, c, p.mtu)
			wire.ICMPv4(l4[:n]).UpdateChecksum()
			return wire.ProtoICMPv4, n
		}
		packet = packet[:min(len(packet), quote6)]
		n := copy(l4[icmpErrorLen:], packet) + icmpErrorLen
		l4[0], l4[1] = c.type6, c.code6
		encodeRest(l4, c, p.mtu)
		return wire.ProtoICMPv6, n
	})
}

// encodeRest writes what follows type and code in the header of an error: the MTU, at the end of the word
// in both families (RFC 1191 section 4, RFC 4443 section 3.2), or nothing.
func encodeRest(m []byte, c icmpCause, mtu uint16) {
	clear(m[2:icmpErrorLen])
	if c == tooBig {
		binary.BigEndian.PutUint16(m[icmpErrorLen-2:], mtu)
	}
}

// mayAnswer says whether an error may be sent about the packet: RFC 1812 section 4.3.2.7 and RFC 4443
// section 2.4 e forbid errors about errors, later fragments, and what was sent to or from a group.
func mayAnswer(p *punt) bool {
	src, dst := srcAddr(&p.parsed), dstAddr(&p.parsed)
	eth := wire.Ethernet(p.bytes())
	if !p.parsed.HasL4() || eth.Dst().IsMulticast() || dst.IsMulticast() || dst == broadcast4 || src.IsMulticast() ||
		src.IsUnspecified() || src.IsLoopback() || src.IsLinkLocalUnicast() || src == broadcast4 {
		return false
	}
	message := p.bytes()[min(int(p.parsed.L4), p.n):]
	switch p.parsed.Proto {
	case wire.ProtoICMPv4:
		return len(message) > 0 && (message[0] == wire.ICMPv4Echo || message[0] == wire.ICMPv4EchoReply)
	case wire.ProtoICMPv6:
		return len(message) > 0 && message[0] >= 128 // RFC 4443 section 2.1: below are errors
	}
	return true
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// answerEcho answers echo requests to the switch's own addresses; nothing else is for it.
func (s *slowWorker) answerEcho(net *network, p *punt) drop.Reason {
	l4 := p.bytes()[min(int(p.parsed.L4), p.n):min(int(p.parsed.End), p.n)]
	if !p.whole || p.parsed.Fragment || len(l4) < icmpErrorLen {
		return drop.LocalUnhandled
	}
	var reply, proto uint8
	switch {
	case p.parsed.Kind == wire.KindIPv4 && p.parsed.Proto == wire.ProtoICMPv4 &&
		l4[0] == wire.ICMPv4Echo && wire.ICMPv4(l4).ChecksumOK():
		reply, proto = wire.ICMPv4EchoReply, wire.ProtoICMPv4
	case p.parsed.Kind == wire.KindIPv6 && p.parsed.Proto == wire.ProtoICMPv6 && l4[0] == wire.ICMPv6Echo &&
		wire.ICMPv6(l4).ChecksumOK(wire.PseudoHeader(p.bytes()[p.parsed.L3:], true, wire.ProtoICMPv6, len(l4))):
		reply, proto = wire.ICMPv6EchoReply, wire.ProtoICMPv6
	default:
		return drop.LocalUnhandled
	}
	s.originateIP(net, dstAddr(&p.parsed), srcAddr(&p.parsed), func(out []byte) (uint8, int) {
		n := copy(out, l4)
		out[0] = reply
		if proto == wire.ProtoICMPv4 {
			wire.ICMPv4(out[:n]).UpdateChecksum()
		}
		return proto, n
	})
	return drop.None
}

// originateIP sends a packet of the switch's own to wherever the VNI's table routes it. build writes the
// message behind the IP header and returns its protocol and length; an ICMPv6 checksum, which covers the
// addresses, is filled in here.
func (s *slowWorker) originateIP(net *network, from, to netip.Addr, build func(l4 []byte) (proto uint8, n int)) {
	header := wire.IPv6Len
	if to.Is4() {
		header = wire.IPv4MinLen
	}
	s.originate(puntCopy, func(out []byte) int {
		wire.Ethernet(out).Encode(&wire.EthernetFields{Dst: net.RouterMAC, Src: net.RouterMAC, EtherType: etherType(to)})
		ip := out[wire.EthernetLen:]
		proto, n := build(ip[header:])
		if to.Is4() {
			wire.IPv4(ip).Encode(&wire.IPv4Fields{TotalLen: uint16(header + n), TTL: originTTL, Protocol: proto, Src: from, Dst: to})
		} else {
			wire.IPv6(ip).Encode(&wire.IPv6Fields{PayloadLen: uint16(n), NextHeader: proto, HopLimit: originTTL, Src: from, Dst: to})
			wire.ICMPv6(ip[header : header+n]).UpdateChecksum(wire.PseudoHeader(ip, true, proto, n))
		}
		return wire.EthernetLen + header + n
	}, func(f *frame.Frame) {
		f.VNI = net.VNI
		s.inject(f)
	})
}

func etherType(a netip.Addr) uint16 {
	if a.Is4() {
		return wire.EtherTypeIPv4
	}
	return wire.EtherTypeIPv6
}

func srcAddr(p *wire.Parsed) netip.Addr { return addr(p.Kind, p.Src) }
func dstAddr(p *wire.Parsed) netip.Addr { return addr(p.Kind, p.Dst) }

func addr(k wire.Kind, a [16]byte) netip.Addr {
	if k == wire.KindIPv4 {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(a)
}
