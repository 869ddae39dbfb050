package bench

import (
	"net"
	"net/netip"

	"tapyard/switch/wire"
)

// echoConn is an ICMP echo (RFC 792, RFC 4443 section 4.1) as a net.Conn: what is written goes out as the
// data of an echo request, what is read is the data of echo replies. The kernel computes ICMPv6 checksums.
type echoConn struct {
	*net.IPConn
	request, reply uint8
	seq            uint32
}

func dialEcho(network string, bind, to netip.Addr) (net.Conn, error) {
	c, err := net.DialIP(network, probeIPAddr(bind), probeIPAddr(to))
	if err != nil {
		return nil, err
	}
	if to.Is4() {
		return &echoConn{IPConn: c, request: wire.ICMPv4Echo, reply: wire.ICMPv4EchoReply}, nil
	}
	return &echoConn{IPConn: c, request: wire.ICMPv6Echo, reply: wire.ICMPv6EchoReply}, nil
}

// Write implements net.Conn.
func (c *echoConn) Write(data []byte) (int, error) {
	c.seq++
	m := wire.ICMPv4(make([]byte, wire.ICMPv4Len+len(data))) // both ICMPs have the same layout
	m.Encode(&wire.ICMPv4Fields{Type: c.request, Rest: c.seq})
	copy(m.Payload(), data)
	m.UpdateChecksum()
	_, err := c.IPConn.Write(m)
	return len(data), err
}

// Read implements net.Conn. It skips what is no echo reply.
func (c *echoConn) Read(data []byte) (int, error) {
	for buf := make([]byte, 256); ; {
		n, _, err := c.ReadFromIP(buf) // unlike Read, this leaves the IPv4 header out
		if err != nil {
			return 0, err
		}
		if m := wire.ICMPv4(buf[:n]); m.IsValid() && m.Type() == c.reply {
			return copy(data, m.Payload()), nil
		}
	}
}

// observeICMP notes the sources of our echo requests until the socket is closed; the kernel answers them.
func (s *probeSession) observeICMP(c *net.IPConn) {
	request := wire.ICMPv4Echo
	if s.target.Is6() {
		request = wire.ICMPv6Echo
	}
	for buf := make([]byte, 256); ; {
		n, from, err := c.ReadFromIP(buf)
		if err != nil {
			return
		}
		addr, ok := netip.AddrFromSlice(from.IP)
		if m := wire.ICMPv4(buf[:n]); ok && m.IsValid() && m.Type() == request {
			s.see(m.Payload(), addr)
		}
	}
}
