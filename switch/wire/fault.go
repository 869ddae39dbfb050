package wire

// Fault says why Parse refused a frame; the zero value is no fault.
type Fault uint8

// Faults in the order of Parse's checks. Lengths are held against the bytes
// that are there.
const (
	FaultNone           Fault = iota
	FaultShortEthernet        // fewer bytes than an Ethernet header
	FaultVLANTagged           // an 802.1Q or 802.1ad tag
	FaultShortARP             // fewer bytes than ARP for IPv4 over Ethernet
	FaultARPFields            // ARP for other address types
	FaultShortIPv4            // fewer bytes than an IPv4 header
	FaultIPv4Version          // EtherType IPv4, version not 4
	FaultIPv4HeaderLen        // header length under 20 or beyond the frame
	FaultIPv4TotalLen         // total length under the header's or beyond the frame
	FaultIPv4Checksum         // header checksum wrong
	FaultShortIPv6            // fewer bytes than an IPv6 header
	FaultIPv6Version          // EtherType IPv6, version not 6
	FaultIPv6PayloadLen       // payload length beyond the frame, or a jumbogram
	FaultIPv6Extension        // extension headers cut short, too many, or fragmented twice
	FaultShortL4              // fewer bytes than a TCP, UDP or ICMP header
	FaultTCPDataOffset        // TCP header length under 20 or beyond the packet
	FaultUDPLength            // UDP length under 8 or beyond the packet

	// NumFaults is the number of values, for tables indexed by Fault.
	NumFaults = int(iota)
)

var faultNames = [NumFaults]string{
	FaultNone:           "none",
	FaultShortEthernet:  "short_ethernet",
	FaultVLANTagged:     "vlan_tagged",
	FaultShortARP:       "short_arp",
	FaultARPFields:      "arp_fields",
	FaultShortIPv4:      "short_ipv4",
	FaultIPv4Version:    "ipv4_version",
	FaultIPv4HeaderLen:  "ipv4_header_len",
	FaultIPv4TotalLen:   "ipv4_total_len",
	FaultIPv4Checksum:   "ipv4_checksum",
	FaultShortIPv6:      "short_ipv6",
	FaultIPv6Version:    "ipv6_version",
	FaultIPv6PayloadLen: "ipv6_payload_len",
	FaultIPv6Extension:  "ipv6_extension",
	FaultShortL4:        "short_l4",
	FaultTCPDataOffset:  "tcp_data_offset",
	FaultUDPLength:      "udp_length",
}

// String returns the fault in snake_case, as metrics and traces show it.
func (f Fault) String() string {
	if int(f) < NumFaults {
		return faultNames[f]
	}
	return "invalid"
}
