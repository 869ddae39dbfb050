package selftest

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"tapyard/encap"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// tunnelPort is any but VXLAN's own, which a kernel's vxlan module may claim in every namespace.
const tunnelPort = 47890

// tunnel sends frames from one tunnel to another over the first end's loopback: as many of one length as
// fill a message, shorter ones, and the longest.
func (t *topology) tunnel() error {
	return t.ends[0].enter(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set up lo: %w", err)
		}
		return errors.Join(t.tunnelOver("127.0.0.1", "127.0.0.2"), t.tunnelOver("::1", t.ends[0].addrs[ipv6].String()))
	})
}

func (t *topology) tunnelOver(from, to string) error {
	var tunnels [2]*encap.Tunnel
	addrs := [2]netip.Addr{netip.MustParseAddr(from), netip.MustParseAddr(to)}
	for i := range tunnels {
		peers := new(encap.VTEPTable)
		err := peers.Set([]encap.Peer{{Name: "self-test", Underlay: addrs[1-i]}})
		if err != nil {
			return err
		}
		tunnels[i], err = encap.Open(encap.Config{Name: "self-test", Local: addrs[i], Port: tunnelPort, Workers: 1, Peers: peers})
		if err != nil {
			return err
		}
		defer tunnels[i].Close()
	}
	for _, sizes := range [][]int{repeated(1400, 40), repeated(60, frame.BurstSize), {1400, 1400, 900, 60, 1400}} {
		if err := t.carry(tunnels, sizes); err != nil {
			return fmt.Errorf("from %s to %s: %w", from, to, err)
		}
	}
	return tunnels[0].Segmentation()
}

func repeated(size, n int) []int {
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = size
	}
	return sizes
}

// carry sends a burst of frames of such lengths and compares what arrives.
func (t *topology) carry(tunnels [2]*encap.Tunnel, sizes []int) error {
	var sent, stats port.Stats
	var b frame.Burst
	var want [][]byte
	for i, size := range sizes {
		buf := t.pool.Reserve(0, size)
		copy(buf, payload(size + i)[i:])
		wire.Ethernet(buf).Encode(&wire.EthernetFields{Dst: wire.MAC(mac(1)), Src: wire.MAC(mac(2)), EtherType: experiment})
		f := t.pool.Commit(size)
		f.VNI, f.Peer = 1, 1
		want = append(want, f.Bytes())
		b.Append(f)
	}
	defer b.Release()
	tx := tunnels[0].Tx(0, &sent)
	tx.Send(&b)
	tx.Flush()
	rx := tunnels[1].Rx()[0]
	got := 0
	for start := time.Now(); got < len(want); {
		var in frame.Burst
		rx.Recv(0, &in, t.parts, &stats)
		for _, f := range in.Frames() {
			if got == len(want) || !bytes.Equal(f.Bytes(), want[got]) {
				in.Release()
				return fmt.Errorf("frame %d of %d arrived changed", got+1, len(want))
			}
			got++
		}
		in.Release()
		if time.Since(start) > patience {
			return fmt.Errorf("%d of %d frames arrived", got, len(want))
		}
	}
	return nil
}

// experiment is the EtherType for local experiments (IEEE 802): such frames stay what they are.
const experiment = 0x88b5
