package main

import "testing"

// volume is the least length of a TCP stream.
const volume = 1 << 20

// TestInteropRouted joins Tapyard with nodes whose overlay is somebody else's VXLAN, routed: pods of one
// node reach those of the other in both families.
func TestInteropRouted(t *testing.T) {
	c := build(t)
	for _, k := range []struct {
		name     string
		family   int // of the tunnels
		offloads bool
		options  string // of the foreign vxlan device
		long     bool   // left out by -short
	}{
		{"IPv4", 4, false, "udpcsum", true},
		{"IPv4 with offloads", 4, true, "udpcsum", false},
		{"IPv4 without checksums", 4, false, "noudpcsum", false}, // ip-link(8)'s default, and flannel's
		{"IPv4 with offloads, without checksums", 4, true, "noudpcsum", true},
		{"IPv6", 6, false, "", false},
		{"IPv6 with offloads", 6, true, "", true},
		{"IPv6 without checksums", 6, false, "udp6zerocsumtx udp6zerocsumrx", true}, // RFC 6935
		{"IPv6 with offloads, without checksums", 6, true, "udp6zerocsumtx udp6zerocsumrx", true},
	} {
		if k.long && testing.Short() {
			continue
		}
		t.Run("kernel over "+k.name, func(t *testing.T) {
			u := newUnderlay(t, k.family, k.offloads)
			pod := startNode(t, c, u, nil).attach("pod", nil)
			kernelVXLAN(t, u, 1, "nolearning "+k.options)
			exchange(t, pod, routedPlace(t, u.foreign, "vx"), u.mtu, volume)
		})
	}
	for _, k := range []struct {
		name   string
		family int
		long   bool
	}{{"IPv4", 4, false}, {"IPv6", 6, true}} {
		if k.long && testing.Short() {
			continue
		}
		// Only without offloads: this Open vSwitch can't take what a veth with offloads delivers, super-frames
		// and datagrams that nobody has summed. Between two machines there is none of that.
		t.Run("Open vSwitch over "+k.name, func(t *testing.T) {
			u := newUnderlay(t, k.family, false)
			pod := startNode(t, c, u, nil).attach("pod", nil)
			ovs := startOVS(t, u.foreign)
			ovs.bridges(u, 1)
			exchange(t, pod, routedPlace(t, ovs.pod("fpod", u.mtu), "eth0"), u.mtu, volume)
		})
	}
}
