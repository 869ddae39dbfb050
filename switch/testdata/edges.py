"""Edge frames for switch/scapy_test.go, one JSON object a line, made by scapy, which knows nothing of our code.

A case goes into `port` (pod, host, tunnel). With a `reason` it has to be dropped for exactly that; with `to`
it has to leave through that port (pod_b, pod, host, tunnel) as `want`, which is what scapy makes of it one
hop later. The addresses are those of rig_test.go.
"""
import json

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert, IPOption_RR, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6EchoRequest, ICMPv6MLReport2, ICMPv6MLDMultAddrRec, ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA,
    ICMPv6ND_Redirect, ICMPv6ND_RS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6, IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, Jumbo, PadN, RouterAlert)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether, LLC, SNAP, STP
from scapy.packet import Raw

ROUTER, HOST, PEER = "02:00:00:00:00:01", "06:00:00:00:00:01", "02:00:00:00:00:09"
MAC_A, MAC_B, ALL = "0a:00:00:00:00:03", "0a:00:00:00:00:04", "ff:ff:ff:ff:ff:ff"
A4, B4, GW4, LOCAL4 = "10.244.1.3", "10.244.1.4", "10.244.1.1", "10.244.1.2"
A6, B6, GW6, LOCAL6 = "fd00:1::3", "fd00:1::4", "fd00:1::1", "fd00:1::2"
LL_A, LL_B = "fe80::800:ff:fe00:3", "fe80::800:ff:fe00:4"  # EUI-64
REMOTE4, REMOTE6 = "10.244.2.3", "fd00:2::3"
VNI = 1

NONE, TCP4, TCP6, UDP4, ECN = 0, 1, 4, 5, 0x80  # GSO types of linux/virtio_net.h


def emit(name, frame, port="pod", **more):
    print(json.dumps({"name": name, "port": port, "hex": bytes(frame).hex(), **more}))


def dropped(reason, name, frame, port="pod", **meta):
    emit(name, frame, port, reason=reason, meta=meta)


def switched(name, frame, to="pod_b", port="pod", **meta):
    """The frame arrives as it was sent."""
    emit(name, frame, port, to=to, want=bytes(frame).hex(), meta=meta)


def routed(name, ip, to="tunnel", dst=PEER, port="pod", tail=b""):
    """The packet, with Ethernet padding behind it, arrives with other MACs and one hop less."""
    src = {"pod": MAC_A, "host": HOST, "tunnel": PEER}[port]
    sent = bytes(Ether(src=src, dst=ROUTER) / ip) + tail
    hop = Ether(sent)
    hop.src, hop.dst = ROUTER, dst
    if IPv6 in hop:
        hop[IPv6].hlim -= 1
    else:
        hop[IP].ttl -= 1
        del hop[IP].chksum
    want = bytes(hop)
    emit(name, sent, port, to=to, want=want.hex(), meta={})


def a_to_b(src=MAC_A, dst=MAC_B):
    return Ether(src=src, dst=dst)


def ip4(**fields):
    return IP(**{"src": A4, "dst": B4, **fields})


def ip6(**fields):
    return IPv6(**{"src": A6, "dst": B6, **fields})


def datagram(n=8):
    return UDP(sport=4000, dport=5000) / Raw(b"x" * n)


def cut(frame, n):
    return bytes(frame)[:n]


def patched(frame, offset, value):
    b = bytearray(bytes(frame))
    b[offset:offset + len(value)] = value
    return bytes(b)


def parsing():
    dropped("short_ethernet", "empty frame", b"")
    dropped("short_ethernet", "13 bytes", cut(a_to_b() / ip4() / datagram(), 13))
    dropped("multicast_source", "from a group", Ether(src="01:00:5e:00:00:01", dst=MAC_B) / ip4() / datagram())
    dropped("multicast_source", "from the broadcast address", Ether(src=ALL, dst=MAC_B) / ip4() / datagram())
    dropped("vlan_tagged", "802.1Q", a_to_b() / Dot1Q(vlan=5) / ip4() / datagram())
    dropped("vlan_tagged", "802.1Q with priority alone", a_to_b() / Dot1Q(vlan=0, prio=7) / ip4() / datagram())
    dropped("vlan_tagged", "802.1ad", a_to_b() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / ip4() / datagram())

    who = ARP(op=1, hwsrc=MAC_A, psrc=A4, pdst=B4)
    dropped("short_arp", "ARP of 27 bytes", cut(Ether(src=MAC_A, dst=ALL) / who, 14 + 27))
    dropped("short_arp", "ARP of nothing", cut(Ether(src=MAC_A, dst=ALL) / who, 14))
    for name, field in {"hardware type 6": {"hwtype": 6}, "protocol IPv6": {"ptype": 0x86dd},
                        "hardware length 8": {"hwlen": 8}, "protocol length 16": {"plen": 16}}.items():
        arp = ARP(op=1, hwsrc=MAC_A, psrc=A4, pdst=B4)
        raw = bytearray(bytes(Ether(src=MAC_A, dst=ALL) / arp))
        at = {"hwtype": 14, "ptype": 16, "hwlen": 18, "plen": 19}
        (key, value), = field.items()
        width = 2 if key in ("hwtype", "ptype") else 1
        raw[at[key]:at[key] + width] = value.to_bytes(width, "big")
        dropped("arp_fields", "ARP with " + name, bytes(raw))

    whole = a_to_b() / ip4() / datagram()
    dropped("short_ipv4", "IPv4 of nothing", cut(whole, 14))
    dropped("short_ipv4", "IPv4 of 19 bytes", cut(whole, 14 + 19))
    dropped("ipv4_version", "IPv6 behind the EtherType of IPv4", Ether(src=MAC_A, dst=MAC_B, type=0x0800) / ip6() / datagram())
    dropped("ipv4_version", "version 0", a_to_b() / ip4(version=0) / datagram())
    dropped("ipv4_header_len", "header of 16 bytes", a_to_b() / ip4(ihl=4) / datagram())
    dropped("ipv4_header_len", "header behind the end", cut(a_to_b() / ip4(ihl=15) / datagram(), 14 + 59))
    dropped("ipv4_total_len", "total length under the header's", a_to_b() / ip4(len=19) / datagram())
    dropped("ipv4_total_len", "total length one beyond the frame", a_to_b() / ip4(len=20 + 8 + 8 + 1) / datagram())
    dropped("ipv4_total_len", "total length 0", a_to_b() / ip4(len=0) / datagram())
    dropped("ipv4_checksum", "checksum wrong", a_to_b() / ip4(chksum=0xdead) / datagram())
    dropped("ipv4_checksum", "checksum 0", a_to_b() / ip4(chksum=0) / datagram())
    dropped("ipv4_checksum", "checksum of the header without its options",
            patched(a_to_b() / ip4(options=[IPOption_RR()]) / datagram(), 14 + 20, b"\x01"))

    six = a_to_b() / ip6() / datagram()
    dropped("short_ipv6", "IPv6 of nothing", cut(six, 14))
    dropped("short_ipv6", "IPv6 of 39 bytes", cut(six, 14 + 39))
    dropped("ipv6_version", "IPv4 behind the EtherType of IPv6", Ether(src=MAC_A, dst=MAC_B, type=0x86dd) / ip4() / datagram(40))
    dropped("ipv6_version", "version 7", patched(six, 14, b"\x70"))
    dropped("ipv6_payload_len", "payload one beyond the frame", a_to_b() / ip6(plen=17) / datagram())
    dropped("ipv6_payload_len", "jumbogram", a_to_b() / ip6(plen=0, nh=0) / IPv6ExtHdrHopByHop(nh=17, options=[Jumbo(jumboplen=70000)]) / datagram())
    dropped("ipv6_extension", "extension header cut short", a_to_b() / ip6(nh=60) / Raw(b"\x11\x00\x01"))
    dropped("ipv6_extension", "extension header beyond the packet", a_to_b() / ip6(nh=60) / Raw(b"\x11\x09" + bytes(14)))
    nine = b"".join(bytes([60 if i < 8 else 17, 0, 1, 4, 0, 0, 0, 0]) for i in range(9))
    dropped("ipv6_extension", "nine extension headers", a_to_b() / ip6(nh=60) / Raw(nine + bytes(datagram())))
    dropped("ipv6_extension", "a fragment of a fragment", a_to_b() / ip6() / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrFragment(m=1) / datagram())
    dropped("ipv6_extension", "authentication header beyond the packet", a_to_b() / ip6(nh=51) / Raw(b"\x11\xff" + bytes(10)))

    for family, ip in {"IPv4": ip4, "IPv6": ip6}.items():
        dropped("short_l4", f"TCP of 19 bytes over {family}", a_to_b() / ip(**proto(family, 6)) / Raw(bytes(19)))
        dropped("short_l4", f"UDP of 7 bytes over {family}", a_to_b() / ip(**proto(family, 17)) / Raw(bytes(7)))
        dropped("short_l4", f"TCP of nothing over {family}", a_to_b() / ip(**proto(family, 6)))
        dropped("tcp_data_offset", f"data offset 4 over {family}", a_to_b() / ip() / TCP(dataofs=4))
        dropped("tcp_data_offset", f"data offset beyond the packet over {family}", a_to_b() / ip() / TCP(dataofs=6))
        dropped("udp_length", f"UDP length 7 over {family}", a_to_b() / ip() / UDP(len=7) / Raw(b"x"))
        dropped("udp_length", f"UDP length 0 over {family}", a_to_b() / ip() / UDP(len=0) / Raw(b"x"))
        dropped("udp_length", f"UDP length one beyond the packet over {family}", a_to_b() / ip() / UDP(len=10) / Raw(b"x"))
    dropped("short_l4", "ICMPv4 of 7 bytes", a_to_b() / ip4(proto=1) / Raw(b"\x08" + bytes(6)))
    dropped("short_l4", "ICMPv6 of 3 bytes", a_to_b() / ip6(nh=58) / Raw(b"\x80\x00\x00"))
    dropped("short_l4", "first fragment without the UDP header", a_to_b() / ip4(flags="MF", proto=17) / Raw(b"x" * 7))
    # Who filters advertisements has to see the whole chain of headers in the first fragment (RFC 7112).
    dropped("short_l4", "first fragment that ends before its ICMPv6 header", a_to_b() / ip6(hlim=255) / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt(nh=58))
    dropped("ipv6_extension", "first fragment that ends in an extension header", a_to_b() / ip6(hlim=255) / IPv6ExtHdrFragment(m=1, nh=60) / Raw(b"\x3a\x01" + bytes(6)))
    dropped("short_l4", "UDP behind extension headers, cut short", a_to_b() / ip6() / IPv6ExtHdrDestOpt(nh=17) / Raw(b"x" * 7))


def proto(family, n):
    return {"proto": n} if family == "IPv4" else {"nh": n}


def offloads():
    big = a_to_b() / ip4() / datagram(400)
    stream = a_to_b() / ip4() / TCP(flags="A") / Raw(b"x" * 400)
    good = {"gso": UDP4, "csum": True, "size": 100, "start": 34, "offset": 6}
    tcp = {"gso": TCP4, "csum": True, "size": 100, "start": 34, "offset": 16}
    for name, frame, meta in [
            ("GSO without a partial checksum", big, {**good, "csum": False}),
            ("GSO size 0", big, {**good, "size": 0}),
            ("a datagram for each byte", big, {**good, "size": 1}),
            ("a segment for each byte", a_to_b() / ip4() / TCP(flags="A") / Raw(b"x" * 1400), {**tcp, "size": 1}),
            ("UDP segments of TCP", stream, {**good}),
            ("TCP segments of UDP", big, {**tcp}),
            ("TCPv6 segments of IPv4", stream, {**tcp, "gso": TCP6}),
            ("TCPv4 segments of IPv6", a_to_b() / ip6() / TCP(flags="A") / Raw(b"x" * 400), {**tcp, "start": 54}),
            ("UDP fragmentation, which Linux gave up", big, {**good, "gso": 3}),
            ("an unknown GSO type", big, {**good, "gso": 9}),
            ("ECN without a type", big, {**good, "gso": ECN}),
            ("ECN with UDP segments", big, {**good, "gso": UDP4 | ECN}),
            ("GSO of ARP", Ether(src=MAC_A, dst=ALL) / ARP(op=1, hwsrc=MAC_A, psrc=A4, pdst=B4), {**good, "start": 14}),
            ("GSO without payload", a_to_b() / ip4() / UDP(), {**good}),
            ("GSO of a fragment", a_to_b() / ip4(flags="MF") / datagram(400), {**good}),
            ("GSO with padding behind the packet", bytes(big) + b"padding", {**good}),
            ("a checksum over the destination's address", big, {"csum": True, "start": 14, "offset": 16}),
            ("a checksum over the ports", big, {"csum": True, "start": 34, "offset": 0}),
            ("a checksum over the MACs", big, {"csum": True, "start": 0, "offset": 0}),
            ("a checksum behind the packet", big, {"csum": True, "start": 34, "offset": 408}),
            ("a checksum far behind the frame", big, {"csum": True, "start": 65535, "offset": 65535}),
            ("a checksum of a later fragment", a_to_b() / ip4(frag=10, proto=17) / Raw(b"x" * 64), {"csum": True, "start": 34, "offset": 6}),
            ("a checksum of ARP", Ether(src=MAC_A, dst=ALL) / ARP(op=1, hwsrc=MAC_A, psrc=A4, pdst=B4), {"csum": True, "start": 14, "offset": 6}),
    ]:
        dropped("bad_offload", name, frame, **meta)


def guarding():
    other = "0a:00:00:00:00:77"
    dropped("spoofed_mac", "a MAC that is nobody's", a_to_b(src=other) / ip4() / datagram())
    dropped("spoofed_mac", "the neighbour's MAC", Ether(src=MAC_B, dst=ROUTER) / ip4(dst=REMOTE4) / datagram())
    dropped("spoofed_mac", "the router's MAC", a_to_b(src=ROUTER) / ip4() / datagram())
    dropped("spoofed_mac", "no IP at all", Ether(src=other, dst=MAC_B, type=0x88b5) / Raw(bytes(46)))
    dropped("spoofed_mac", "ARP from another MAC", Ether(src=other, dst=ALL) / ARP(op=1, hwsrc=other, psrc=A4, pdst=B4))
    for name, src in {"the neighbour's": B4, "the gateway's": GW4, "an absent pod's": "10.244.1.200", "a remote pod's": REMOTE4,
                      "an internet": "192.0.2.1", "loopback": "127.0.0.1", "a group's": "224.0.0.1", "broadcast": "255.255.255.255",
                      "link-local": "169.254.1.1"}.items():
        dropped("spoofed_ip", f"switched from {name} address", a_to_b() / ip4(src=src) / datagram())
        dropped("spoofed_ip", f"routed from {name} address", Ether(src=MAC_A, dst=ROUTER) / ip4(src=src, dst=REMOTE4) / datagram())
    for name, src in {"the neighbour's": B6, "the gateway's": GW6, "a remote pod's": REMOTE6, "loopback": "::1",
                      "the neighbour's link-local": LL_B, "another link-local": "fe80::1", "a group's": "ff02::1"}.items():
        dropped("spoofed_ip", f"switched from {name} IPv6 address", a_to_b() / ip6(src=src) / datagram())
        dropped("spoofed_ip", f"routed from {name} IPv6 address", Ether(src=MAC_A, dst=ROUTER) / ip6(src=src, dst=REMOTE6) / datagram())
    dropped("spoofed_ip", "a datagram from the unspecified address", a_to_b() / ip6(src="::") / datagram())
    dropped("spoofed_ip", "the neighbour's address behind extension headers", a_to_b() / ip6(src=B6) / IPv6ExtHdrDestOpt() / datagram())
    dropped("spoofed_ip", "the neighbour's address in a later fragment", a_to_b() / ip4(src=B4, frag=10, proto=17) / Raw(b"x" * 64))

    def arp(**f):
        return Ether(src=MAC_A, dst=ALL) / ARP(**{"op": 1, "hwsrc": MAC_A, "psrc": A4, "pdst": B4, **f})
    dropped("spoofed_arp", "a request from the neighbour's address", arp(psrc=B4, pdst=GW4))
    dropped("spoofed_arp", "a request from the gateway's address", arp(psrc=GW4))
    dropped("spoofed_arp", "a request with the neighbour's MAC inside", arp(hwsrc=MAC_B))
    dropped("spoofed_arp", "a gratuitous reply for the gateway", arp(op=2, psrc=GW4, pdst=GW4))
    dropped("spoofed_arp", "a gratuitous request for the gateway", arp(psrc=GW4, pdst=GW4))
    dropped("spoofed_arp", "a reply to the neighbour for the gateway",
            a_to_b() / ARP(op=2, hwsrc=MAC_A, psrc=GW4, hwdst=MAC_B, pdst=B4))
    dropped("spoofed_arp", "a reply that gives our address to another MAC", a_to_b() / ARP(op=2, hwsrc=MAC_B, psrc=A4, hwdst=MAC_B, pdst=B4))

    def nd(message, **f):
        return a_to_b() / ip6(**{"hlim": 255, **f}) / message
    dropped("spoofed_nd", "an advertisement of the gateway", nd(ICMPv6ND_NA(tgt=GW6, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC_A)))
    dropped("spoofed_nd", "an advertisement of the neighbour", nd(ICMPv6ND_NA(tgt=B6, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC_A)))
    dropped("spoofed_nd", "an advertisement of our address at another MAC", nd(ICMPv6ND_NA(tgt=A6, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC_B)))
    dropped("spoofed_nd", "a solicitation with another MAC", nd(ICMPv6ND_NS(tgt=B6) / ICMPv6NDOptSrcLLAddr(lladdr=MAC_B)))
    dropped("spoofed_nd", "a solicitation with two MACs", nd(ICMPv6ND_NS(tgt=B6) / ICMPv6NDOptSrcLLAddr(lladdr=MAC_A) / ICMPv6NDOptSrcLLAddr(lladdr=MAC_B)))
    dropped("spoofed_nd", "an advertisement in a first fragment", nd(IPv6ExtHdrFragment(m=1) / ICMPv6ND_NA(tgt=A6) / ICMPv6NDOptDstLLAddr(lladdr=MAC_A)))
    dropped("spoofed_nd", "an option of no length", nd(ICMPv6ND_NS(tgt=B6) / Raw(b"\x01\x00" + bytes(6))))
    dropped("spoofed_nd", "an option beyond the message", nd(ICMPv6ND_NS(tgt=B6) / Raw(b"\x01\x02" + bytes(6))))
    # Of a fragment nobody sees the whole message, so that it is none that can be allowed (RFC 6980 section 5).
    dropped("spoofed_nd", "a router advertisement in a first fragment", nd(IPv6ExtHdrFragment(m=1) / ICMPv6ND_RA(), src=LL_A, dst="ff02::1"))
    dropped("router_advert", "a router advertisement", nd(ICMPv6ND_RA(), src=LL_A, dst="ff02::1"))
    dropped("router_advert", "a router advertisement from the global address", nd(ICMPv6ND_RA()))
    dropped("router_advert", "a router advertisement behind an extension header", a_to_b() / ip6(hlim=255) / IPv6ExtHdrDestOpt() / ICMPv6ND_RA())
    dropped("router_advert", "a redirect", nd(ICMPv6ND_Redirect(tgt=LL_A, dst=REMOTE6), src=LL_A))


def lookups():
    for last in (0x00, 0x01, 0x02, 0x03, 0x0e, 0x0f):
        dropped("reserved_multicast", f"for 01-80-c2-00-00-{last:02x}",
                Ether(src=MAC_A, dst=f"01:80:c2:00:00:{last:02x}", type=0x88cc) / Raw(bytes(46)))
    dropped("reserved_multicast", "a spanning tree's", bytes(Ether(src=MAC_A, dst="01:80:c2:00:00:00", type=38) / LLC() / STP()) + bytes(8))
    dropped("not_for_router", "the host to a pod's MAC", Ether(src=HOST, dst=MAC_A) / IP(src=GW4, dst=A4) / datagram(), "host")
    dropped("not_for_router", "a peer to a pod's MAC", Ether(src=PEER, dst=MAC_A) / IP(src=REMOTE4, dst=A4) / datagram(), "tunnel")
    dropped("not_for_router", "a peer's broadcast", Ether(src=PEER, dst=ALL) / ARP(op=1, hwsrc=PEER, psrc=REMOTE4, pdst=A4), "tunnel")
    dropped("not_for_router", "a peer's EtherType that we don't know", Ether(src=PEER, dst=MAC_A, type=0x88b5) / Raw(bytes(46)), "tunnel")
    dropped("not_ip", "an experimental EtherType for the router", Ether(src=MAC_A, dst=ROUTER, type=0x88b5) / Raw(bytes(46)))
    dropped("not_ip", "an 802.3 length for the router", bytes(Ether(src=MAC_A, dst=ROUTER, type=8) / LLC() / SNAP()) + bytes(38))
    for name, src in {"this network": "0.0.0.0", "this network's last": "0.255.255.255", "loopback": "127.0.0.1", "loopback's last": "127.255.255.255",
                      "a group": "224.0.0.1", "the highest group": "239.255.255.255", "broadcast": "255.255.255.255"}.items():
        dropped("martian_source", f"routed from {name}", Ether(src=PEER, dst=ROUTER) / IP(src=src, dst=B4) / datagram(), "tunnel")
    for name, src in {"::": "::", "loopback": "::1", "link-local": "fe80::1", "a group": "ff02::1"}.items():
        dropped("martian_source", f"routed over IPv6 from {name}", Ether(src=PEER, dst=ROUTER) / IPv6(src=src, dst=B6) / datagram(), "tunnel")
    dropped("no_route", "a subnet of nobody", Ether(src=MAC_A, dst=ROUTER) / ip4(dst="10.244.9.9") / datagram())
    dropped("no_route", "an IPv6 subnet of nobody", Ether(src=MAC_A, dst=ROUTER) / ip6(dst="fd00:9::9") / datagram())
    dropped("no_neighbor", "a pod that isn't there", Ether(src=HOST, dst=ROUTER) / IP(src=GW4, dst="10.244.1.200") / datagram(), "host")
    dropped("no_neighbor", "an IPv6 pod that isn't there", Ether(src=HOST, dst=ROUTER) / IPv6(src=GW6, dst="fd00:1::200") / datagram(), "host")
    for ttl in (0, 1):
        dropped("ttl_exceeded", f"TTL {ttl}", Ether(src=MAC_A, dst=ROUTER) / ip4(dst=REMOTE4, ttl=ttl) / datagram())
        dropped("ttl_exceeded", f"hop limit {ttl}", Ether(src=MAC_A, dst=ROUTER) / ip6(dst=REMOTE6, hlim=ttl) / datagram())
    dropped("too_big", "one byte over the MTU, DF", Ether(src=MAC_A, dst=ROUTER) / ip4(dst=REMOTE4, flags="DF") / datagram(1450 - 28 + 1))
    dropped("too_big", "one byte over the MTU, IPv6", Ether(src=MAC_A, dst=ROUTER) / ip6(dst=REMOTE6) / datagram(1450 - 48 + 1))
    dropped("host_loop", "the host to the world", Ether(src=HOST, dst=ROUTER) / IP(src=GW4, dst="192.0.2.1") / datagram(), "host")
    dropped("split_horizon", "a peer to a peer", Ether(src=PEER, dst=ROUTER) / IP(src="10.244.3.3", dst=REMOTE4) / datagram(), "tunnel")
    dropped("looped", "a peer with our router MAC", Ether(src=ROUTER, dst=ROUTER) / IP(src=REMOTE4, dst=B4) / datagram(), "tunnel")
    dropped("hairpin", "a pod to itself", a_to_b(dst=MAC_A) / ip4(dst=A4) / datagram())
    dropped("local_unhandled", "UDP to the switch itself", Ether(src=MAC_A, dst=ROUTER) / ip4(dst=LOCAL4) / datagram())
    dropped("local_unhandled", "UDP over IPv6 to the switch itself", Ether(src=MAC_A, dst=ROUTER) / ip6(dst=LOCAL6) / datagram())
    dropped("local_unhandled", "an echo reply to the switch itself", Ether(src=MAC_A, dst=ROUTER) / ip4(dst=LOCAL4) / ICMP(type=0))
    dropped("unknown_vni", "a VNI of nobody", Ether(src=PEER, dst=ROUTER) / IP(src=REMOTE4, dst=B4) / datagram(), "tunnel", vni=VNI + 1)
    dropped("unknown_vni", "the highest VNI", Ether(src=PEER, dst=ROUTER) / IP(src=REMOTE4, dst=B4) / datagram(), "tunnel", vni=2**24 - 1)


def legal():
    switched("the shortest frame that Ethernet carries", bytes(a_to_b() / ip4() / UDP(sport=1, dport=2)).ljust(60, b"\0"))
    switched("an IPv4 header alone, without padding", a_to_b() / ip4(proto=253))
    switched("an Ethernet header alone", Ether(src=MAC_A, dst=MAC_B, type=0x88b5))
    switched("padding that isn't zero", bytes(a_to_b() / ip4() / datagram(1)) + b"\xa5" * 20)
    switched("a full MTU", a_to_b() / ip4(flags="DF") / datagram(1450 - 28))
    switched("65,535 bytes of IPv4", a_to_b() / ip4() / datagram(65535 - 28))
    switched("65,535 bytes behind the IPv6 header's start", a_to_b() / ip6() / datagram(65535 - 40 - 8))
    switched("an 802.3 length", bytes(Ether(src=MAC_A, dst=MAC_B, type=8) / LLC() / SNAP()) + bytes(38))
    switched("an EtherType of nobody", Ether(src=MAC_A, dst=MAC_B, type=0x88b5) / Raw(bytes(46)))
    switched("TTL 0 within the segment", a_to_b() / ip4(ttl=0) / datagram())
    switched("UDP checksum 0 over IPv4", a_to_b() / ip4() / UDP(sport=1, dport=2, chksum=0) / Raw(b"no checksum"))
    switched("a wrong UDP checksum, which is the receiver's to find", a_to_b() / ip4() / UDP(chksum=0xdead) / Raw(b"x"))
    switched("UDP with bytes behind its length", a_to_b() / ip4() / UDP(len=9) / Raw(b"x trailing"))
    switched("an unknown protocol", a_to_b() / ip4(proto=253) / Raw(b"x" * 3))
    switched("TCP with every flag and 40 bytes of options", a_to_b() / ip4() / TCP(flags=0xff, options=[("NOP", None)] * 40))
    switched("a first fragment, whose UDP length exceeds it", a_to_b() / ip4(flags="MF", proto=17) / Raw(bytes(UDP(len=3000)) + b"x" * 1000))
    switched("a later fragment", a_to_b() / ip4(frag=126, proto=17) / Raw(b"x" * 11))
    switched("the last possible fragment", a_to_b() / ip4(frag=8189, proto=6) / Raw(b"x" * 3))
    for ecn in range(4):
        switched(f"ECN {ecn}", a_to_b() / ip4(tos=ecn) / datagram())
        switched(f"ECN {ecn} and a DSCP over IPv6", a_to_b() / ip6(tc=0xb8 | ecn, fl=0xfffff) / datagram())
        routed(f"ECN {ecn}", ip4(dst=REMOTE4, tos=ecn) / datagram())
        routed(f"ECN {ecn} over IPv6", ip6(dst=REMOTE6, tc=ecn, fl=0xabcde) / datagram())
    for name, option in {"record route": IPOption_RR(), "router alert": IPOption_Router_Alert(), "timestamp": IPOption_Timestamp(length=8)}.items():
        switched(f"IPv4 option {name}", a_to_b() / ip4(options=[option]) / datagram())
        routed(f"IPv4 option {name}", ip4(dst=REMOTE4, options=[option]) / datagram())
    switched("a header full of NOPs", a_to_b() / ip4(options=b"\x01" * 40) / datagram())
    chains = {
        "hop-by-hop": IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]),
        "routing": IPv6ExtHdrRouting(addresses=[]),
        "destination options": IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))]),
        "a first fragment": IPv6ExtHdrFragment(m=1, id=7),
        "hop-by-hop, destination, routing, destination": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=[]) / IPv6ExtHdrDestOpt(),
    }
    for name, chain in chains.items():
        switched(f"IPv6 {name}", a_to_b() / ip6() / chain / datagram())
        routed(f"IPv6 {name}", ip6(dst=REMOTE6) / chain / datagram())
    switched("IPv6 a later fragment", a_to_b() / ip6() / IPv6ExtHdrFragment(offset=100, nh=17, id=7) / Raw(b"x" * 5))
    switched("IPv6 ESP", a_to_b() / ip6(nh=50) / Raw(b"x" * 32))
    switched("IPv6 AH", a_to_b() / ip6(nh=51) / Raw(b"\x11\x04" + bytes(22) + bytes(datagram())))
    switched("IPv6 no next header", a_to_b() / ip6(nh=59) / Raw(b"ignored"))
    switched("IPv6 an unknown next header", a_to_b() / ip6(nh=253) / Raw(b"x" * 3))
    switched("IPv6 an unknown next header behind hop-by-hop", a_to_b() / ip6() / IPv6ExtHdrHopByHop(nh=253) / Raw(b"x"))
    switched("IPv6 without payload", a_to_b() / ip6(nh=59))
    switched("between link-local addresses", a_to_b() / ip6(src=LL_A, dst=LL_B) / ICMPv6EchoRequest())

    switched("an ARP probe of a free address", Ether(src=MAC_A, dst=ALL) / ARP(op=1, hwsrc=MAC_A, psrc="0.0.0.0", pdst="10.244.1.99"))
    switched("an ARP probe of our own address", Ether(src=MAC_A, dst=ALL) / ARP(op=1, hwsrc=MAC_A, psrc="0.0.0.0", pdst=A4))
    switched("an ARP announcement", Ether(src=MAC_A, dst=ALL) / ARP(op=1, hwsrc=MAC_A, psrc=A4, pdst=A4))
    switched("a gratuitous ARP reply", Ether(src=MAC_A, dst=ALL) / ARP(op=2, hwsrc=MAC_A, psrc=A4, pdst=A4, hwdst=ALL))
    switched("an ARP reply with padding", bytes(a_to_b() / ARP(op=2, hwsrc=MAC_A, psrc=A4, hwdst=MAC_B, pdst=B4)).ljust(60, b"\0"))
    solicited = Ether(src=MAC_A, dst="33:33:ff:00:00:03")
    switched("DAD of our own address", solicited / ip6(src="::", dst="ff02::1:ff00:3", hlim=255) / ICMPv6ND_NS(tgt=A6))
    switched("DAD of our link-local address", solicited / ip6(src="::", dst="ff02::1:ff00:3", hlim=255) / ICMPv6ND_NS(tgt=LL_A))
    switched("an advertisement of our own address", a_to_b() / ip6(hlim=255) / ICMPv6ND_NA(tgt=A6, R=0, S=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC_A))
    switched("an unsolicited advertisement of our link-local address",
             Ether(src=MAC_A, dst="33:33:00:00:00:01") / ip6(src=LL_A, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=LL_A, R=0, S=0) / ICMPv6NDOptDstLLAddr(lladdr=MAC_A))
    switched("a router solicitation", Ether(src=MAC_A, dst="33:33:00:00:00:02") / ip6(src=LL_A, dst="ff02::2", hlim=255) / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC_A))
    switched("a router solicitation from ::", Ether(src=MAC_A, dst="33:33:00:00:00:02") / ip6(src="::", dst="ff02::2", hlim=255) / ICMPv6ND_RS())
    for name, src in {"link-local": LL_A, "the unspecified address": "::"}.items():
        report = ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(rtype=4, dst="ff02::1:ff00:3")])
        switched(f"an MLD report from {name}",
                 Ether(src=MAC_A, dst="33:33:00:00:00:16") / ip6(src=src, dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / report)
    switched("IPv4 multicast", Ether(src=MAC_A, dst="01:00:5e:00:00:fb") / ip4(dst="224.0.0.251", ttl=255) / UDP(sport=5353, dport=5353) / Raw(b"mdns"))
    switched("an IGMP report", Ether(src=MAC_A, dst="01:00:5e:00:00:16") / ip4(dst="224.0.0.22", ttl=1, proto=2, options=[IPOption_Router_Alert()]) / Raw(bytes.fromhex("2200f9fd00000001040000 00e00000fb".replace(" ", ""))))
    switched("a DHCP client's broadcast of the subnet", Ether(src=MAC_A, dst=ALL) / ip4(dst="255.255.255.255") / UDP(sport=68, dport=67) / Raw(b"x"))

    routed("TTL 2", ip4(dst=REMOTE4, ttl=2) / datagram())
    routed("hop limit 2", ip6(dst=REMOTE6, hlim=2) / datagram())
    routed("TTL 255", ip4(dst=REMOTE4, ttl=255) / datagram())
    routed("a full MTU", ip4(dst=REMOTE4, flags="DF") / datagram(1450 - 28))
    routed("a full MTU over IPv6", ip6(dst=REMOTE6) / datagram(1450 - 48))
    routed("a later fragment", ip4(dst=REMOTE4, frag=126, proto=17) / Raw(b"x" * 11))
    routed("UDP checksum 0", ip4(dst=REMOTE4) / UDP(chksum=0) / Raw(b"x"))
    routed("Ethernet padding", ip4(dst=REMOTE4) / UDP(), tail=bytes(18))
    routed("to the world", ip4(dst="192.0.2.1") / datagram(), to="host", dst=HOST)
    routed("from a peer", IP(src=REMOTE4, dst=B4, ttl=2) / datagram(), to="pod_b", dst=MAC_B, port="tunnel")
    routed("from a peer over IPv6", IPv6(src=REMOTE6, dst=B6, hlim=2) / datagram(), to="pod_b", dst=MAC_B, port="tunnel")
    # RFC 3927 section 7 forbids routers such a source, but the host answers from one for pods: a metadata
    # service at 169.254.169.254, a node's DNS cache at 169.254.20.10.
    routed("from a link-local address of the host", IP(src="169.254.169.254", dst=B4) / datagram(), to="pod_b", dst=MAC_B, port="host")
    routed("from the host", IP(src=GW4, dst=B4) / ICMP(), to="pod_b", dst=MAC_B, port="host")
    # A header checksum just below the point where one hop wraps it around (RFC 1624 section 3).
    for ident in range(0, 65536, 5041):
        routed(f"identification {ident}", ip4(dst=REMOTE4, id=ident) / datagram())


parsing()
offloads()
guarding()
lookups()
legal()
