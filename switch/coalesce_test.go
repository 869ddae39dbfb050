package vswitch

import (
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/drop"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// burstUDP is n datagrams of a flow as a pod's kernel sends them, with DF and 18 bytes of payload.
func burstUDP(t testing.TB, dstMAC wire.MAC, dst []byte, n int) (frames []porttest.Frame) {
	for i := range n {
		frames = append(frames, plain(packet(t, ethernet(macA, dstMAC, layers.EthernetTypeIPv4),
			&layers.IPv4{TTL: 64, Id: uint16(i), Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolUDP,
				SrcIP: a4.AsSlice(), DstIP: dst},
			&layers.UDP{SrcPort: 4000, DstPort: 5000}, gopacket.Payload{17: byte(i)})))
	}
	return frames
}

// wiresOf returns how many wire frames each frame stands for.
func wiresOf(frames []porttest.Frame) (n []int) {
	for _, f := range frames {
		n = append(n, f.Meta.WireFrames(len(f.Bytes)))
	}
	return n
}

// One flow's burst leaves as one super-frame to a device that takes all kinds of them, and as it came where a tunnel
// or an old kernel would only have to have it cut again. The ledger counts what is on the wire.
func TestSendMergesABurst(t *testing.T) {
	podB := func(r *rig) *porttest.Port { return r.podB }
	host := func(r *rig) *porttest.Port { return r.host }
	tunnel := func(r *rig) *porttest.Port { return r.tunnel }
	for name, c := range map[string]struct {
		caps   port.Caps
		mac    wire.MAC
		dst    []byte
		out    func(r *rig) *porttest.Port
		merges bool
	}{
		"pod":                 {port.CapsAll, macB, b4.AsSlice(), podB, true},
		"routed to the host":  {port.CapsAll, routerMAC, internet4.AsSlice(), host, true},
		"tunnel":              {port.CapsAll, routerMAC, remote4.AsSlice(), tunnel, false},
		"kernel without USO":  {port.CapsAll &^ port.CapUSO, macB, b4.AsSlice(), podB, false},
		"without any offload": {0, macB, b4.AsSlice(), podB, false},
	} {
		r := newRig(t, c.caps)
		want := slices.Repeat([]int{1}, 10)
		if c.merges {
			want = []int{10}
		}
		r.run(r.podA, burstUDP(t, c.mac, c.dst, 10)...)
		if got := wiresOf(c.out(r).Sent()); !slices.Equal(got, want) {
			t.Errorf("%s: frames of %v wire frames, want %v", name, got, want)
		}
		l := r.sw.Ledger()
		if l.Tx != (Count{uint64(len(want)), 10}) || l.Merged != (Count{uint64(10 - len(want)), 0}) {
			t.Errorf("%s: tx %v merged %v, want %d frames for 10", name, l.Tx, l.Merged, len(want))
		}
	}
}

// Two flows and a lonely frame: the burst is sent in the order of what each begins with.
func TestSendMergesFlowByFlow(t *testing.T) {
	r := newRig(t, port.CapsAll)
	frames := burstUDP(t, macB, b4.AsSlice(), 3)
	other := plain(udp(t, macA, macB, a6, b6, 64, "of a flow of its own"))
	r.run(r.podA, frames[0], other, frames[1], frames[2])
	if got := wiresOf(r.podB.Sent()); !slices.Equal(got, []int{3, 1}) {
		t.Errorf("frames of %v wire frames, want 3 and 1", got)
	}
}

// What the kernel refuses is dropped whole, and counted so, for its reason.
func TestRefusedSuperFrameCountsAllItsFrames(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.podB.Refuse(drop.TxFull)
	r.run(r.podA, burstUDP(t, macB, b4.AsSlice(), 10)...)
	v := r.sw.snapshot.Load().port(r.ids[r.podB]).view()
	if got := v.Drops[drop.TxFull]; got != (Count{1, 10}) {
		t.Errorf("tx_full %v, want 1 frame for 10", got)
	}
}
