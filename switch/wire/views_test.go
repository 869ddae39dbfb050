package wire

import (
	"bytes"
	"testing"
)

// FuzzViews takes any bytes for a header of each kind: no view may read behind them, and what a view finds valid
// is encoded to the same again. One target serves all views: an input costs the fuzzing engine as much time as it
// costs all of them.
func FuzzViews(f *testing.F) {
	addSeeds(f, 0, "arpRequest", "udpv4", "tcpv6")
	addSeeds(f, EthernetLen, "arpRequest", "arpReply", "udpv4", "tcpv4", "icmpv4LastFragment", "vxlanARP",
		"udpv6", "tcpv6", "icmpv6LastFragment", "mldReport")
	addSeeds(f, l4v4, "udpv4", "tcpv4", "icmpv4Echo", "icmpv4Unreachable", "vxlanARP")
	addSeeds(f, l4v6, "udpv6", "tcpv6", "icmpv6Echo", "routerSolicit", "neighborSolicit", "dadSolicit", "neighborAdvert")
	addSeeds(f, l4v4+UDPLen, "vxlanARP")
	f.Add(unhex("0181 4200 a805 2200 1000")) // TSO with ECN, little-endian
	f.Add(unhex("0105 2a00 c005 2200 0600")) // USO
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, view := range []func(*testing.T, []byte){
			fuzzVirtioNet, fuzzEthernet, fuzzARP, fuzzIPv4, fuzzIPv6, fuzzICMPv4, fuzzICMPv6,
			fuzzRouterSolicit, fuzzNeighborSolicit, fuzzNeighborAdvert, fuzzTCP, fuzzUDP, fuzzVXLAN,
		} {
			view(t, bytes.Clone(b)) // some write checksums
		}
	})
}
