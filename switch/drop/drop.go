// Package drop names every way a frame can end early. The zero Reason means that the frame was not
// dropped; each other has a snake_case name, which is also the metric label, and a sentence for operators.
package drop

// Reason says why a frame ended. Zero is None.
type Reason uint8

// The reasons, in the order in which a frame meets them. The ones of a malformed frame follow
// wire.Fault one to one, so that a count points at the field that was wrong.
const (
	None Reason = iota

	// Receiving: a port or tunnel could not hand the frame on.
	ShortRead
	NotVXLAN
	UnknownPeer
	UnknownVNI
	ECNNotCapable
	SliceLost
	BadBundle

	// Parsing: a header lies about itself.
	ShortEthernet
	MulticastSource
	VLANTagged
	ShortARP
	ARPFields
	ShortIPv4
	IPv4Version
	IPv4HeaderLen
	IPv4TotalLen
	IPv4Checksum
	ShortIPv6
	IPv6Version
	IPv6PayloadLen
	IPv6Extension
	ShortL4
	TCPDataOffset
	UDPLength
	BadOffload

	// Guarding: a pod sends what is not its own, or more than its share.
	SpoofedMAC
	SpoofedIP
	SpoofedARP
	SpoofedND
	RouterAdvert
	BUMLimit
	SYNLimit
	BandwidthEgress

	// Lookup: there is nowhere to send the frame.
	ReservedMulticast
	NotForRouter
	NotIP
	MartianSource
	NoRoute
	NoNeighbor
	TTLExceeded
	TooBig
	HostLoop
	SplitHorizon
	Looped
	Hairpin
	NoFloodTarget
	LocalUnhandled

	// Slow path: its bounded door was shut.
	PuntFull

	// Sending: the egress refused the frame.
	PortGone
	BandwidthIngress
	TxFull
	TxError
	NoBuffer

	// Count is the number of reasons, None included: the length of an array indexed by Reason.
	Count
)

var table = [Count]struct{ name, explain string }{
	None:              {"none", "not dropped"},
	ShortRead:         {"short_read", "the device delivered fewer bytes than its own offload header"},
	NotVXLAN:          {"not_vxlan", "a datagram on the tunnel's UDP port is no VXLAN: shorter than 8 bytes or without the I flag"},
	UnknownPeer:       {"unknown_peer", "a tunnel datagram came from an address that is no peer, or a frame was for one that left; see 'tapyard show peers'"},
	UnknownVNI:        {"unknown_vni", "a tunnel datagram carries a VNI that this node doesn't have"},
	ECNNotCapable:     {"ecn_not_capable", "the underlay marked congestion on a packet whose ends don't understand it (RFC 6040 4.2)"},
	SliceLost:         {"slice_lost", "a slice whose message can't be put together: others of it were lost or overtaken on the underlay; the peer goes back to plain VXLAN (see 'tapyard show peers')"},
	BadBundle:         {"bad_bundle", "a peer's datagram with several frames claims one that is longer than it, or no Ethernet frame"},
	ShortEthernet:     {"short_ethernet", "shorter than an Ethernet header"},
	MulticastSource:   {"multicast_source", "the source MAC is a group address, which no station owns (IEEE 802.3 3.2.3)"},
	VLANTagged:        {"vlan_tagged", "the frame carries a VLAN tag; tagged frames are not forwarded"},
	ShortARP:          {"short_arp", "shorter than an ARP message for IPv4 over Ethernet"},
	ARPFields:         {"arp_fields", "ARP for something else than IPv4 over Ethernet"},
	ShortIPv4:         {"short_ipv4", "shorter than an IPv4 header"},
	IPv4Version:       {"ipv4_version", "EtherType IPv4, but the version field is not 4"},
	IPv4HeaderLen:     {"ipv4_header_len", "the IPv4 header length is under 20 bytes or behind the frame's end"},
	IPv4TotalLen:      {"ipv4_total_len", "the IPv4 total length is under the header's or behind the frame's end"},
	IPv4Checksum:      {"ipv4_checksum", "the IPv4 header checksum is wrong"},
	ShortIPv6:         {"short_ipv6", "shorter than an IPv6 header"},
	IPv6Version:       {"ipv6_version", "EtherType IPv6, but the version field is not 6"},
	IPv6PayloadLen:    {"ipv6_payload_len", "the IPv6 payload length lies behind the frame's end"},
	IPv6Extension:     {"ipv6_extension", "an IPv6 extension header is cut short, or there are too many"},
	ShortL4:           {"short_l4", "too short for the transport header that the IP header announces"},
	TCPDataOffset:     {"tcp_data_offset", "the TCP data offset is under 20 bytes or behind the packet's end"},
	UDPLength:         {"udp_length", "the UDP length is under 8 bytes or behind the packet's end"},
	BadOffload:        {"bad_offload", "the offload metadata (GSO size or type, checksum start or offset) doesn't fit the frame"},
	SpoofedMAC:        {"spoofed_mac", "the source MAC is not the one that this pod was given"},
	SpoofedIP:         {"spoofed_ip", "the source address is none of those that this pod was given"},
	SpoofedARP:        {"spoofed_arp", "an ARP message claims an address or a MAC that this pod was not given"},
	SpoofedND:         {"spoofed_nd", "a neighbour discovery message claims an address or a MAC that this pod was not given"},
	RouterAdvert:      {"router_advert", "a pod sent a router advertisement or a redirect; only the switch is a router here (RFC 6105)"},
	BUMLimit:          {"bum_limit", "more broadcast, unknown-destination or multicast frames than the port's share"},
	SYNLimit:          {"syn_limit", "more TCP connection attempts than the port's share"},
	BandwidthEgress:   {"bandwidth_egress", "the pod sends more than its bandwidth limit (egressRate, egressBurst; see 'tapyard show ports')"},
	ReservedMulticast: {"reserved_multicast", "for 01-80-C2-00-00-0x, which a bridge doesn't forward (IEEE 802.1Q 8.6.3)"},
	NotForRouter:      {"not_for_router", "on a port that only routes, the frame is not addressed to the router MAC"},
	NotIP:             {"not_ip", "addressed to the router MAC, but neither IPv4 nor IPv6"},
	MartianSource:     {"martian_source", "routed from an address that can't be a sender's: this network, loopback, link-local, a group (RFC 1812 5.3.7)"},
	NoRoute:           {"no_route", "no route to the destination; the sender gets ICMP unreachable; see 'tapyard show routes'"},
	NoNeighbor:        {"no_neighbor", "the destination is on a connected subnet, but nobody there has its address"},
	TTLExceeded:       {"ttl_exceeded", "TTL or hop limit used up; the sender gets ICMP time exceeded"},
	TooBig:            {"too_big", "larger than the way out takes: the sender gets ICMP fragmentation needed or packet too big, unless the underlay refused it (last error in 'tapyard show ports')"},
	HostLoop:          {"host_loop", "from the host and routed back to the host"},
	SplitHorizon:      {"split_horizon", "from a tunnel and routed into a tunnel; peers disagree about who has the subnet"},
	Looped:            {"looped", "from a tunnel with a source MAC of this node: the frame came back, or the peer spoofs"},
	Hairpin:           {"hairpin", "the destination MAC is behind the port that the frame came from"},
	NoFloodTarget:     {"no_flood_target", "nobody else to flood to in this VNI"},
	LocalUnhandled:    {"local_unhandled", "addressed to the switch itself, which answers echo requests only"},
	PuntFull:          {"punt_full", "the port's share of the slow path's queue is used up"},
	PortGone:          {"port_gone", "the way out was detached"},
	BandwidthIngress:  {"bandwidth_ingress", "the pod is sent more than its bandwidth limit (ingressRate, ingressBurst; see 'tapyard show ports')"},
	TxFull:            {"tx_full", "the receiver's queue is full (EAGAIN or ENOBUFS)"},
	TxError:           {"tx_error", "the kernel refused the frame; 'tapyard show ports' has the last error"},
	NoBuffer:          {"no_buffer", "no buffer left to build the frame in"},
}

// String returns the reason's snake_case name, the metric label.
func (r Reason) String() string {
	if r < Count {
		return table[r].name
	}
	return "invalid"
}

// Explain returns one sentence for an operator who reads the count at three in the morning.
func (r Reason) Explain() string {
	if r < Count {
		return table[r].explain
	}
	return "not a reason: a bug in the switch"
}
