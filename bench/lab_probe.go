package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

// A probe is probeExchanges questions and answers; the fastest is its round-trip time, since the first one
// resolves addresses too. Each may take probePatience; a reply over an idle lab takes less than 1 ms. The
// first one may take probeFirst: the kernel asks again for a neighbour after 1 s (RFC 4861 section 10,
// RETRANS_TIMER), and the first request is lost when a link has just come up.
const (
	probeExchanges = 3
	probePatience  = time.Second
	probeFirst     = 2500 * time.Millisecond
)

// probeProtos are the protocols of a probe.
var probeProtos = []string{"icmp", "tcp", "udp"}

// ProbeRequest says who asks whom.
type ProbeRequest struct {
	From, To string     // a pod, a node or "internet"
	Bind     netip.Addr // source address; the zero value leaves it to the kernel
	Protos   []string   // of icmp, tcp, udp
	Families []int      // of 4, 6
	Gateway  bool       // ask the node To at its pods' gateway address instead of its underlay address
}

// Probe is one protocol and family from one place in a lab to another.
type Probe struct {
	From    string     `json:"from"`
	To      string     `json:"to"`
	Proto   string     `json:"proto"`
	Family  int        `json:"family"`
	Address netip.Addr `json:"address"`          // that was asked
	OK      bool       `json:"ok"`               // every question was answered
	RTT     float64    `json:"rtt_ms,omitempty"` // the fastest
	Source  netip.Addr `json:"source,omitzero"`  // of the questions, as the other side saw it
	Error   string     `json:"error,omitempty"`
}

// Probe probes with our own sockets on both sides: an echo server at the target for TCP and UDP, the
// target's kernel and an observer beside it for ICMP. An error means that the request is wrong; what a probe
// found is in its result.
func (l *Lab) Probe(ctx context.Context, r ProbeRequest) ([]Probe, error) {
	from, err := l.netnsOf(r.From)
	if err != nil {
		return nil, err
	}
	to, err := l.netnsOf(r.To)
	if err != nil {
		return nil, err
	}
	for _, proto := range r.Protos {
		if !slices.Contains(probeProtos, proto) {
			return nil, fmt.Errorf("protocol %q: it is one of %v", proto, probeProtos)
		}
	}
	targets, err := l.probeTargets(r)
	if err != nil {
		return nil, err
	}
	var probes []Probe
	for _, target := range targets {
		for _, proto := range r.Protos {
			p := Probe{From: r.From, To: r.To, Proto: proto, Family: probeFamily(target), Address: target}
			if err := p.run(ctx, from, to, r.Bind); err != nil {
				p.Error = err.Error()
			}
			probes = append(probes, p)
		}
	}
	return probes, ctx.Err()
}

func probeFamily(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// probeTargets are the addresses to ask, of the families wanted and, with Bind, possible.
func (l *Lab) probeTargets(r ProbeRequest) ([]netip.Addr, error) {
	addrs, err := l.addressesOf(r.To, r.Gateway)
	if err != nil {
		return nil, err
	}
	var targets []netip.Addr
	for _, a := range addrs {
		if slices.Contains(r.Families, probeFamily(a)) && (!r.Bind.IsValid() || r.Bind.Is4() == a.Is4()) {
			targets = append(targets, a)
		}
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("%s has the addresses %v: none of a family that was asked for and that --bind allows", r.To, addrs)
	}
	return targets, nil
}

// addressesOf returns where a pod, node or "internet" is reached, IPv4 first.
func (l *Lab) addressesOf(name string, gateway bool) (addrs []netip.Addr, err error) {
	for _, n := range l.Nodes {
		switch {
		case n.Name == name && gateway:
			addrs = n.gateways()
		case n.Name == name:
			addrs = slices.Clone(n.Underlay)
		}
	}
	if gateway && addrs == nil {
		return nil, fmt.Errorf("%s is no node: only nodes have a gateway address", name)
	}
	for _, p := range l.Pods {
		if p.Name == name {
			addrs = slices.Clone(p.Addresses)
		}
	}
	if name == labInternet {
		addrs = labHost(1, false)
	}
	if addrs == nil {
		return nil, fmt.Errorf("%s has no address to ask", name)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}

// gateways are the node's addresses on its side of the pods: the first host of each pod subnet.
func (n *LabNode) gateways() (addrs []netip.Addr) {
	for _, subnet := range n.PodSubnets {
		addrs = append(addrs, subnet.Addr().Next())
	}
	return addrs
}

// run sets up both ends and exchanges messages.
func (p *Probe) run(ctx context.Context, from, to string, bind netip.Addr) error {
	s := &probeSession{proto: p.Proto, nonce: []byte(rand.Text()), target: p.Address, bind: bind, seen: make(chan netip.Addr, 1)}
	defer s.close()
	if err := inNetns(to, s.serve); err != nil {
		return fmt.Errorf("serve at %s: %w", p.To, err)
	}
	if err := inNetns(from, func() error { return s.dial(ctx) }); err != nil {
		return err
	}
	for i := range probeExchanges {
		patience := probePatience
		if i == 0 {
			patience = probeFirst
		}
		rtt, err := s.exchange(ctx, byte(i), patience)
		if err != nil {
			return fmt.Errorf("exchange %d of %d: %w", i+1, probeExchanges, err)
		}
		if ms := float64(rtt.Nanoseconds()) / 1e6; i == 0 || ms < p.RTT {
			p.RTT = ms
		}
	}
	select {
	case p.Source = <-s.seen:
		p.OK = true
		return nil
	case <-time.After(probePatience):
		return errors.New("it was answered, but not by the target: nothing arrived there")
	}
}

// probeSession is the two ends of one probe.
type probeSession struct {
	proto        string
	nonce        []byte // begins each message, so that nothing else is taken for it
	target, bind netip.Addr
	conn         net.Conn
	servers      []interface{ Close() error }
	seen         chan netip.Addr // the first source of our messages at the target
	port         uint16          // of the server
}

func (s *probeSession) close() {
	if s.conn != nil {
		s.conn.Close()
	}
	for _, c := range s.servers {
		c.Close()
	}
}

// network returns the name of our protocol for package net, in the target's family.
func (s *probeSession) network() string {
	switch v4 := s.target.Is4(); {
	case s.proto == "icmp" && v4:
		return "ip4:icmp"
	case s.proto == "icmp":
		return "ip6:ipv6-icmp"
	case v4:
		return s.proto + "4"
	}
	return s.proto + "6"
}

// serve opens the target's end. Package net makes sockets on the calling thread, hence in its namespace.
func (s *probeSession) serve() error {
	switch s.proto {
	case "tcp":
		l, err := net.ListenTCP(s.network(), net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.target, 0)))
		if err != nil {
			return err
		}
		s.servers = append(s.servers, l)
		s.port = l.Addr().(*net.TCPAddr).AddrPort().Port()
		go s.serveTCP(l)
	case "udp":
		c, err := net.ListenUDP(s.network(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.target, 0)))
		if err != nil {
			return err
		}
		s.servers = append(s.servers, c)
		s.port = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		go s.serveUDP(c)
	case "icmp":
		c, err := net.ListenIP(s.network(), probeIPAddr(s.target))
		if err != nil {
			return err
		}
		s.servers = append(s.servers, c)
		go s.observeICMP(c)
	}
	return nil
}

// serveTCP echoes one connection until its end.
func (s *probeSession) serveTCP(l *net.TCPListener) {
	c, err := l.AcceptTCP()
	if err != nil {
		return
	}
	defer c.Close()
	buf := make([]byte, 128)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		s.see(buf[:n], c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// serveUDP echoes until the socket is closed.
func (s *probeSession) serveUDP(c *net.UDPConn) {
	buf := make([]byte, 128)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		s.see(buf[:n], from.Addr())
		if _, err := c.WriteToUDPAddrPort(buf[:n], from); err != nil {
			return
		}
	}
}

// see notes who sent a message at the target.
func (s *probeSession) see(msg []byte, from netip.Addr) {
	if !bytes.HasPrefix(msg, s.nonce) {
		return
	}
	select {
	case s.seen <- from.Unmap():
	default: // not the first
	}
}

// dial opens the source's end.
func (s *probeSession) dial(ctx context.Context) (err error) {
	d := net.Dialer{Timeout: probeFirst}
	at := netip.AddrPortFrom(s.target, s.port).String()
	switch s.proto {
	case "tcp":
		if s.bind.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.bind, 0))
		}
		s.conn, err = d.DialContext(ctx, s.network(), at)
	case "udp":
		if s.bind.IsValid() {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.bind, 0))
		}
		s.conn, err = d.DialContext(ctx, s.network(), at)
	case "icmp":
		s.conn, err = dialEcho(s.network(), s.bind, s.target)
	}
	return err
}

// exchange sends a message and waits for its echo for as long as patience.
func (s *probeSession) exchange(ctx context.Context, number byte, patience time.Duration) (rtt time.Duration, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	msg := append(slices.Clone(s.nonce), number)
	start := time.Now()
	if err := s.conn.SetDeadline(start.Add(patience)); err != nil {
		return 0, err
	}
	if _, err := s.conn.Write(msg); err != nil {
		return 0, err
	}
	for buf := make([]byte, 128); ; {
		n, err := s.conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("no answer within %v", patience)
		}
		if err != nil {
			return 0, err
		}
		if bytes.Equal(buf[:n], msg) {
			return time.Since(start), nil
		}
	}
}

func probeIPAddr(a netip.Addr) *net.IPAddr {
	if !a.IsValid() {
		return nil
	}
	return &net.IPAddr{IP: a.AsSlice()}
}
