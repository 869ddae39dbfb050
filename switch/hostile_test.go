package vswitch

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// An advertisement for the pod's own address, whose "partial checksum" lies in the target: once completed, it
// speaks for pod b. The guard has seen the bytes before, so no message of ND may have one.
func TestACompletedChecksumCannotChangeWhatAnAdvertisementClaims(t *testing.T) {
	const target = 14 + 40 + 8
	own := nd(t, c6, "ff02::1", &layers.ICMPv6NeighborAdvertisement{Flags: 0x20, TargetAddress: c6.AsSlice(), Options: append(
		layers.ICMPv6Options{{Type: 14, Data: make([]byte, 6)}}, linkLayer(layers.ICMPv6OptTargetAddress, macC)...)}, 136)
	// The sum from the target's last word to the end, through a nonce that makes it what pod b's address ends with.
	last := own[target+14:]
	binary.BigEndian.PutUint16(last[len(last)-2:], ^wire.Fold(wire.Sum(last, 0x0004)))
	r, podC := guarded(t, 0)
	r.run(podC, porttest.Frame{Bytes: own, Meta: frame.Meta{NeedsCsum: true, CsumStart: target + 14}})
	for _, f := range r.podB.Sent() {
		t.Errorf("arrived with target %v", netip.AddrFrom16([16]byte(f.Bytes[target:])))
	}
	if got := r.drops(podC); got["bad_offload"] != 1 {
		t.Errorf("drops %v, want bad_offload", got)
	}
}

// A burst from a peer holds frames of several networks, and what is known in one is news in another.
func TestASourceIsLookedUpInItsOwnNetwork(t *testing.T) {
	r, podX, _ := stretched(t)
	r.must(r.sw.AddNetwork(Network{VNI: 300, Stretched: true}))
	podZ, podW := porttest.New("z", port.CapsAll), porttest.New("w", port.CapsAll)
	for _, p := range []*porttest.Port{podZ, podW} {
		r.attach(p, PortConfig{Role: RoleAccess, VNI: 300})
	}
	mac := wire.MAC{10, 0, 0, 0, 2, 1}
	r.must(r.sw.AddStation(300, r.ids[podZ], mac, nil))
	broadcast := from(7, arp(t, mac, mac, 1, ip("10.50.0.5"), ip("10.50.0.9")))
	r.run(r.tunnel, broadcast) // learned in VNI 200
	other := broadcast
	other.Meta.VNI = 300
	r.run(r.tunnel, broadcast, other)
	if got := r.drops(r.tunnel); got["looped"] != 1 || len(podW.Sent()) != 0 || len(podX.Sent()) != 2 {
		t.Errorf("drops %v, %d frames in the network where the source is a pod; want one looped and none", got, len(podW.Sent()))
	}
}
