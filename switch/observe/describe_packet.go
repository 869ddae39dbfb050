package observe

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"tapyard/switch/drop"
	"tapyard/switch/wire"
)

// known says whether the n bytes at the offset are among those that were kept.
func (s sample) known(offset int32, n int) bool { return int(offset)+n <= s.kept }

// packet describes an ARP or IP packet whose first header is in order.
func (s sample) packet(p *wire.Parsed) string {
	if p.Kind == wire.KindARP {
		return arpText(wire.ARP(s.b[p.L3:p.End]))
	}
	return s.ipText(p)
}

func arpText(a wire.ARP) string {
	sender, target := a.SenderIP(), a.TargetIP()
	switch {
	case a.Op() == wire.ARPRequest && sender.IsUnspecified():
		return fmt.Sprintf("ARP probe for %v (%v)", target, a.SenderMAC()) // RFC 5227 section 2.1.1
	case sender == target:
		return fmt.Sprintf("ARP announcement of %v (%v)", sender, a.SenderMAC())
	case a.Op() == wire.ARPRequest:
		return fmt.Sprintf("ARP who-has %v tell %v (%v)", target, sender, a.SenderMAC())
	case a.Op() == wire.ARPReply:
		return fmt.Sprintf("ARP %v is-at %v tell %v (%v)", sender, a.SenderMAC(), target, a.TargetMAC())
	}
	return fmt.Sprintf("ARP operation %d, sender %v (%v), target %v (%v)", a.Op(), sender, a.SenderMAC(), target, a.TargetMAC())
}

// addrs returns the packet's source and destination.
func addrs(p *wire.Parsed) (src, dst netip.Addr) {
	if p.Kind == wire.KindIPv6 {
		return netip.AddrFrom16(p.Src), netip.AddrFrom16(p.Dst)
	}
	return netip.AddrFrom4([4]byte(p.Src[:4])), netip.AddrFrom4([4]byte(p.Dst[:4]))
}

func (s sample) ipText(p *wire.Parsed) string {
	if !p.HasL4() {
		src, dst := addrs(p)
		return fmt.Sprintf("%s fragment%s %v > %v", protoName(p), s.fragmentOffset(p), src, dst)
	}
	text := s.transport(p)
	if p.FirstFragment {
		text = "first fragment of " + text
	}
	if names := s.extensions(p); len(names) > 0 {
		text += ", behind " + list(names)
	}
	return text
}

func (s sample) fragmentOffset(p *wire.Parsed) string {
	if p.Kind == wire.KindIPv4 {
		return fmt.Sprintf(" at byte %d", wire.IPv4(s.b[p.L3:]).FragmentOffset())
	}
	if !s.known(p.L4, 0) {
		return ""
	}
	return fmt.Sprintf(" at byte %d", binary.BigEndian.Uint16(s.b[p.L4-6:])&^7) // RFC 8200 section 4.5
}

// transport describes what stands at p.L4.
func (s sample) transport(p *wire.Parsed) string {
	src, dst := addrs(p)
	l4 := s.b[p.L4:p.End]
	switch {
	case p.Proto == wire.ProtoTCP && len(l4) >= wire.TCPMinLen && s.known(p.L4, wire.TCPMinLen):
		tcp := wire.TCP(l4)
		return fmt.Sprintf("TCP %s%v > %v", tcpFlags(tcp.Flags()), netip.AddrPortFrom(src, tcp.SrcPort()), netip.AddrPortFrom(dst, tcp.DstPort()))
	case p.Proto == wire.ProtoUDP && len(l4) >= wire.UDPLen && s.known(p.L4, wire.UDPLen):
		udp := wire.UDP(l4)
		return fmt.Sprintf("UDP %v > %v", netip.AddrPortFrom(src, udp.SrcPort()), netip.AddrPortFrom(dst, udp.DstPort()))
	case p.Proto == wire.ProtoICMPv4 && p.Kind == wire.KindIPv4 && len(l4) >= wire.ICMPv4Len && s.known(p.L4, wire.ICMPv4Len):
		icmp := wire.ICMPv4(l4)
		return fmt.Sprintf("ICMP %s %v > %v", icmpName(icmpv4Names, icmp.Type(), icmp.Code()), src, dst)
	case p.Proto == wire.ProtoICMPv6 && p.Kind == wire.KindIPv6 && len(l4) >= wire.ICMPv6MinLen && s.known(p.L4, wire.ICMPv6MinLen):
		return s.icmpv6Text(p)
	}
	return fmt.Sprintf("%s %v > %v", protoName(p), src, dst)
}

// tcpFlags returns the flags that say what a segment is for, with a space behind each.
func tcpFlags(flags uint8) (text string) {
	for _, f := range []struct {
		bit  uint8
		name string
	}{{wire.TCPSyn, "SYN "}, {wire.TCPFin, "FIN "}, {wire.TCPRst, "RST "}, {wire.TCPAck, "ACK "}} {
		if flags&f.bit != 0 {
			text += f.name
		}
	}
	return text
}

func (s sample) icmpv6Text(p *wire.Parsed) string {
	src, dst := addrs(p)
	icmp := wire.ICMPv6(s.b[p.L4:p.End])
	if p.ND {
		if text := s.ndText(p); text != "" {
			return text
		}
	}
	return fmt.Sprintf("ICMPv6 %s %v > %v", icmpName(icmpv6Names, icmp.Type(), icmp.Code()), src, dst)
}

// ndText describes a neighbour solicitation or advertisement with its target, or returns "".
func (s sample) ndText(p *wire.Parsed) string {
	src, _ := addrs(p)
	target, mac, solicits, ok := s.neighborMessage(p)
	link := ""
	if !mac.IsZero() {
		link = fmt.Sprintf(" (%v)", mac)
	}
	switch {
	case !ok:
		return ""
	case solicits && src.IsUnspecified():
		return fmt.Sprintf("ND probe for %v", target) // duplicate address detection, RFC 4862 section 5.4.2
	case solicits:
		return fmt.Sprintf("ND who-has %v tell %v%s", target, src, link)
	}
	return fmt.Sprintf("ND advertisement of %v%s by %v", target, link, src)
}

// neighborMessage returns the target of a neighbour solicitation or advertisement and the MAC in its
// first option, if that is its link-layer address.
func (s sample) neighborMessage(p *wire.Parsed) (target netip.Addr, mac wire.MAC, solicits, ok bool) {
	message := s.b[p.L4:max(int(p.L4), min(int(p.End), s.kept))]
	for _, n := range []int{wire.NDLen, wire.NDMinLen} { // an option that is cut or not first is left out
		if len(message) < n {
			continue
		}
		if ns := wire.NeighborSolicit(message[:n]); ns.IsValid() {
			mac, _ = ns.LinkLayer()
			return ns.Target(), mac, true, true
		}
		if na := wire.NeighborAdvert(message[:n]); na.IsValid() {
			mac, _ = na.LinkLayer()
			return na.Target(), mac, false, true
		}
	}
	return target, mac, false, false
}

var extensionNames = map[uint8]string{
	wire.ProtoHopByHop: "hop-by-hop options", wire.ProtoRouting: "a routing header", wire.ProtoFragment: "a fragment header",
	wire.ProtoDestOptions: "destination options", wire.ProtoAH: "an authentication header",
}

// extensions names the IPv6 extension headers that Parse walked over and that were kept.
func (s sample) extensions(p *wire.Parsed) (names []string) {
	if p.Kind != wire.KindIPv6 {
		return nil
	}
	next := wire.IPv6(s.b[p.L3:]).NextHeader()
	for at := p.L3 + wire.IPv6Len; at < p.L4 && s.known(at, 2); {
		names = append(names, extensionNames[next])
		length := (int32(s.b[at+1]) + 1) * 8 // RFC 8200 sections 4.3 to 4.6
		switch next {
		case wire.ProtoFragment:
			length = 8
		case wire.ProtoAH:
			length = (int32(s.b[at+1]) + 2) * 4 // RFC 4302 section 2.2
		}
		next = s.b[at]
		at += length
	}
	return names
}

var protoNames = map[uint8]string{
	wire.ProtoICMPv4: "ICMP", 2: "IGMP", 4: "IP in IP", wire.ProtoTCP: "TCP", wire.ProtoUDP: "UDP", 41: "IPv6 in IP", 47: "GRE",
	wire.ProtoESP: "ESP", wire.ProtoAH: "AH", wire.ProtoICMPv6: "ICMPv6", 89: "OSPF", 103: "PIM", 112: "VRRP", 132: "SCTP",
}

func protoName(p *wire.Parsed) string {
	name, known := protoNames[p.Proto]
	switch {
	case p.Kind == wire.KindIPv6 && extensionNames[p.Proto] != "": // the chain goes on behind what was kept
		return "IPv6"
	case known:
		return name
	case p.Kind == wire.KindIPv6:
		return fmt.Sprintf("IPv6 protocol %d", p.Proto)
	}
	return fmt.Sprintf("IPv4 protocol %d", p.Proto)
}

// icmpKey is an ICMP type, with a code if that makes a difference.
type icmpKey struct{ kind, code uint8 }

// anyCode stands for the codes of a type that have no entry of their own. IANA has assigned none above 15.
const anyCode = 255

var icmpv4Names = map[icmpKey]string{
	{wire.ICMPv4EchoReply, anyCode}:                          "echo reply",
	{wire.ICMPv4Unreachable, anyCode}:                        "unreachable",
	{wire.ICMPv4Unreachable, wire.ICMPv4NetUnreachable}:      "net unreachable",
	{wire.ICMPv4Unreachable, wire.ICMPv4HostUnreachable}:     "host unreachable",
	{wire.ICMPv4Unreachable, wire.ICMPv4ProtoUnreachable}:    "protocol unreachable",
	{wire.ICMPv4Unreachable, wire.ICMPv4PortUnreachable}:     "port unreachable",
	{wire.ICMPv4Unreachable, wire.ICMPv4FragNeeded}:          "fragmentation needed",
	{wire.ICMPv4Unreachable, wire.ICMPv4AdminProhibited}:     "administratively prohibited",
	{wire.ICMPv4Redirect, anyCode}:                           "redirect",
	{wire.ICMPv4Echo, anyCode}:                               "echo request",
	{9, anyCode}:                                             "router advertisement",
	{10, anyCode}:                                            "router solicitation",
	{wire.ICMPv4TimeExceeded, anyCode}:                       "time exceeded",
	{wire.ICMPv4TimeExceeded, wire.ICMPv4ReassemblyExceeded}: "reassembly time exceeded",
	{wire.ICMPv4ParamProblem, anyCode}:                       "parameter problem",
	{13, anyCode}:                                            "timestamp request",
	{14, anyCode}:                                            "timestamp reply",
}

var icmpv6Names = map[icmpKey]string{
	{wire.ICMPv6Unreachable, anyCode}:                        "unreachable",
	{wire.ICMPv6Unreachable, wire.ICMPv6NoRoute}:             "unreachable, no route",
	{wire.ICMPv6Unreachable, wire.ICMPv6AdminProhibited}:     "unreachable, administratively prohibited",
	{wire.ICMPv6Unreachable, wire.ICMPv6AddressUnreachable}:  "address unreachable",
	{wire.ICMPv6Unreachable, wire.ICMPv6PortUnreachable}:     "port unreachable",
	{wire.ICMPv6PacketTooBig, anyCode}:                       "packet too big",
	{wire.ICMPv6TimeExceeded, anyCode}:                       "time exceeded",
	{wire.ICMPv6TimeExceeded, wire.ICMPv6ReassemblyExceeded}: "reassembly time exceeded",
	{wire.ICMPv6ParamProblem, anyCode}:                       "parameter problem",
	{wire.ICMPv6Echo, anyCode}:                               "echo request",
	{wire.ICMPv6EchoReply, anyCode}:                          "echo reply",
	{wire.ICMPv6MLDQuery, anyCode}:                           "MLD query",
	{wire.ICMPv6MLDReport, anyCode}:                          "MLD report",
	{wire.ICMPv6MLDDone, anyCode}:                            "MLD done",
	{wire.ICMPv6RouterSolicit, anyCode}:                      "router solicitation",
	{wire.ICMPv6RouterAdvert, anyCode}:                       "router advertisement",
	{wire.ICMPv6NeighborSolicit, anyCode}:                    "neighbor solicitation",
	{wire.ICMPv6NeighborAdvert, anyCode}:                     "neighbor advertisement",
	{wire.ICMPv6Redirect, anyCode}:                           "redirect",
	{wire.ICMPv6MLDv2Report, anyCode}:                        "MLDv2 report",
}

func icmpName(names map[icmpKey]string, kind, code uint8) string {
	for _, k := range []icmpKey{{kind, code}, {kind, anyCode}} {
		if name := names[k]; name != "" {
			return name
		}
	}
	return fmt.Sprintf("type %d code %d", kind, code)
}

// claim says what the frame claims to be where the source guard refuses that, or "".
func (s sample) claim(r drop.Reason) string {
	var p wire.Parsed
	if fault := wire.Parse(s.b, true, &p); fault == wire.FaultShortEthernet {
		return ""
	}
	src, _ := addrs(&p)
	switch {
	case r == drop.SpoofedMAC:
		return "MAC " + wire.Ethernet(s.b).Src().String()
	case r == drop.SpoofedIP && (p.Kind == wire.KindIPv4 || p.Kind == wire.KindIPv6):
		return src.String()
	case r == drop.SpoofedARP && p.Kind == wire.KindARP:
		return fmt.Sprintf("%v at %v", src, wire.ARP(s.b[p.L3:]).SenderMAC())
	case r == drop.SpoofedND && p.ND:
		return s.neighborClaim(&p)
	}
	return ""
}

// neighborClaim says whose link-layer address a neighbour discovery message teaches: the target's in an
// advertisement, the sender's in the others.
func (s sample) neighborClaim(p *wire.Parsed) string {
	src, _ := addrs(p)
	target, mac, solicits, ok := s.neighborMessage(p)
	if ok && !solicits {
		src = target
	}
	if mac.IsZero() {
		return src.String()
	}
	return fmt.Sprintf("%v at %v", src, mac)
}
