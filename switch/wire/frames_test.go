package wire

// Frames that Linux 6.18 sent over a veth pair with all offloads off: between
// 10.0.0.1, fd00::1 at 02:00:00:00:00:0a and 10.0.0.2, fd00::2 at
// 02:00:00:00:00:0b.

var realFrames = map[string][]byte{
	// who has 10.0.0.2 tell 10.0.0.1
	"arpRequest": unhex(`
		ffff ffff ffff 0200 0000 000a 0806 // Ethernet
		0001 0800 0604 0001 0200 0000 000a 0a00 0001 0000 0000 0000 0a00 0002 // ARP
	`),
	// 10.0.0.2 is at 02:00:00:00:00:0b
	"arpReply": unhex(`
		0200 0000 000a 0200 0000 000b 0806 // Ethernet
		0001 0800 0604 0002 0200 0000 000b 0a00 0002 0200 0000 000a 0a00 0001 // ARP
	`),
	// ping -c1 -s 8 10.0.0.2
	"icmpv4Echo": unhex(`
		0200 0000 000b 0200 0000 000a 0800 // Ethernet
		4500 0024 9647 4000 4001 908f 0a00 0001 0a00 0002 // IPv4
		0800 d206 19e8 0001 // ICMPv4
		0001 0203 0405 0607 // payload
	`),
	// port 53 of 10.0.0.2 unreachable, quoting udpv4
	"icmpv4Unreachable": unhex(`
		0200 0000 000a 0200 0000 000b 0800 // Ethernet
		45c0 003f 9e5a 0000 4001 c7a1 0a00 0002 0a00 0001 // IPv4
		0303 1120 0000 0000 // ICMPv4
		4500 0023 53b4 4000 4011 d313 0a00 0001 0a00 0002 9c40 0035 000f a50a 7461 7079 // payload
		6172 64
	`),
	// the second half of ping -s 1600: MF clear, offset 1480
	"icmpv4LastFragment": unhex(`
		0200 0000 000b 0200 0000 000a 0800 // Ethernet
		4500 0094 9648 00b9 4001 cf65 0a00 0001 0a00 0002 // IPv4
		c0c1 c2c3 c4c5 c6c7 c8c9 cacb cccd cecf d0d1 d2d3 d4d5 d6d7 d8d9 dadb dcdd dedf // payload at offset 1480
		e0e1 e2e3 e4e5 e6e7 e8e9 eaeb eced eeef f0f1 f2f3 f4f5 f6f7 f8f9 fafb fcfd feff
		0001 0203 0405 0607 0809 0a0b 0c0d 0e0f 1011 1213 1415 1617 1819 1a1b 1c1d 1e1f
		2021 2223 2425 2627 2829 2a2b 2c2d 2e2f 3031 3233 3435 3637 3839 3a3b 3c3d 3e3f
	`),
	// "tapyard" to port 53
	"udpv4": unhex(`
		0200 0000 000b 0200 0000 000a 0800 // Ethernet
		4500 0023 53b4 4000 4011 d313 0a00 0001 0a00 0002 // IPv4
		9c40 0035 000f a50a // UDP
		7461 7079 6172 64 // payload
	`),
	// SYN with options to port 80
	"tcpv4": unhex(`
		0200 0000 000b 0200 0000 000a 0800 // Ethernet
		4500 003c 5f58 4000 4006 c761 0a00 0001 0a00 0002 // IPv4
		b32a 0050 915d 5da5 0000 0000 a002 faf0 5779 0000 // TCP
		0204 05b4 0402 080a d767 67ab 0000 0000 0103 030a // MSS, SACK permitted, timestamps, window scale
	`),
	// the kernel's vxlan: VNI 4242, an ARP request inside
	"vxlanARP": unhex(`
		0200 0000 000b 0200 0000 000a 0800 // Ethernet
		4500 004e 53b7 0000 4011 12e6 0a00 0001 0a00 0002 // IPv4
		840b 12b5 003a 8c51 // UDP
		0800 0000 0010 9200 // VXLAN
		ffff ffff ffff 0200 0000 001a 0806 // Ethernet
		0001 0800 0604 0001 0200 0000 001a 0a09 0001 0000 0000 0000 0a09 0002 // ARP
	`),
	// where is a router, from fe80::ff:fe00:a
	"routerSolicit": unhex(`
		3333 0000 0002 0200 0000 000a 86dd // Ethernet
		6000 0000 0010 3aff fe80 0000 0000 0000 0000 00ff fe00 000a ff02 0000 0000 0000 // IPv6
		0000 0000 0000 0002
		8500 7b1a 0000 0000 // ICMPv6
		0101 0200 0000 000a // option
	`),
	// who has fd00::2, with its source link-layer address
	"neighborSolicit": unhex(`
		3333 ff00 0002 0200 0000 000a 86dd // Ethernet
		6000 0000 0020 3aff fd00 0000 0000 0000 0000 0000 0000 0001 ff02 0000 0000 0000 // IPv6
		0000 0001 ff00 0002
		8700 7d8e 0000 0000 // ICMPv6
		fd00 0000 0000 0000 0000 0000 0000 0002 // target
		0101 0200 0000 000a // option
	`),
	// solicited, override, with its target link-layer address
	"neighborAdvert": unhex(`
		0200 0000 000a 0200 0000 000b 86dd // Ethernet
		6000 0000 0020 3aff fd00 0000 0000 0000 0000 0000 0000 0002 fd00 0000 0000 0000 // IPv6
		0000 0000 0000 0001
		8800 1c91 6000 0000 // ICMPv6
		fd00 0000 0000 0000 0000 0000 0000 0002 // target
		0201 0200 0000 000b // option
	`),
	// duplicate address detection: from ::, a nonce option instead of a link-layer one
	"dadSolicit": unhex(`
		3333 ff00 000a 0200 0000 000a 86dd // Ethernet
		6000 0000 0020 3aff 0000 0000 0000 0000 0000 0000 0000 0000 ff02 0000 0000 0000 // IPv6
		0000 0001 ff00 000a
		8700 91b0 0000 0000 // ICMPv6
		fe80 0000 0000 0000 0000 00ff fe00 000a // target
		0e01 d2fa c9bd 40a1 // option
	`),
	// ping -c1 -s 8 fd00::2
	"icmpv6Echo": unhex(`
		0200 0000 000b 0200 0000 000a 86dd // Ethernet
		6002 9b8e 0010 3a40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 // IPv6
		0000 0000 0000 0002
		8000 5fb6 19e9 0001 // ICMPv6
		0001 0203 0405 0607 // payload
	`),
	// the second half of ping -s 1600: a fragment header with offset 1448
	"icmpv6LastFragment": unhex(`
		0200 0000 000b 0200 0000 000a 86dd // Ethernet
		6002 9b8e 00a8 2c40 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 // IPv6
		0000 0000 0000 0002
		3a00 05a8 9795 a228 // fragment header
		a0a1 a2a3 a4a5 a6a7 a8a9 aaab acad aeaf b0b1 b2b3 b4b5 b6b7 b8b9 babb bcbd bebf // payload at offset 1448
		c0c1 c2c3 c4c5 c6c7 c8c9 cacb cccd cecf d0d1 d2d3 d4d5 d6d7 d8d9 dadb dcdd dedf
		e0e1 e2e3 e4e5 e6e7 e8e9 eaeb eced eeef f0f1 f2f3 f4f5 f6f7 f8f9 fafb fcfd feff
		0001 0203 0405 0607 0809 0a0b 0c0d 0e0f 1011 1213 1415 1617 1819 1a1b 1c1d 1e1f
		2021 2223 2425 2627 2829 2a2b 2c2d 2e2f 3031 3233 3435 3637 3839 3a3b 3c3d 3e3f
	`),
	// MLDv2 report behind a hop-by-hop header
	"mldReport": unhex(`
		3333 0000 0016 0200 0000 000a 86dd // Ethernet
		6000 0000 0038 0001 fe80 0000 0000 0000 0000 00ff fe00 000a ff02 0000 0000 0000 // IPv6
		0000 0000 0000 0016
		3a00 0502 0000 0100 // hop-by-hop: router alert
		8f00 6fda 0000 0002 // ICMPv6
		0400 0000 ff02 0000 0000 0000 0000 0001 ff00 0001 0400 0000 ff02 0000 0000 0000 // payload
		0000 0001 ff00 000a
	`),
	// "tapyard" to port 53
	"udpv6": unhex(`
		0200 0000 000b 0200 0000 000a 86dd // Ethernet
		600b 875c 000f 1140 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 // IPv6
		0000 0000 0000 0002
		9c40 0035 000f bf08 // UDP
		7461 7079 6172 64 // payload
	`),
	// SYN with options to port 80
	"tcpv6": unhex(`
		0200 0000 000b 0200 0000 000a 86dd // Ethernet
		6009 71b9 0028 0640 fd00 0000 0000 0000 0000 0000 0000 0001 fd00 0000 0000 0000 // IPv6
		0000 0000 0000 0002
		8bd2 0050 e760 1304 0000 0000 a002 fd20 3c3b 0000 // TCP
		0204 05a0 0402 080a 6767 26c2 0000 0000 0103 030a // MSS, SACK permitted, timestamps, window scale
	`),
}
