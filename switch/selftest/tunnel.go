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

// underlay is what tunnels of a proof are on: the first end's loopback.
func (t *topology) underlay(mtu int, prove func(from, to string) error) error {
	return t.ends[0].enter(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetMTU(lo, mtu)); err != nil {
			return fmt.Errorf("set up lo: %w", err)
		}
		return errors.Join(prove("127.0.0.1", "127.0.0.2"), prove("::1", t.ends[0].addrs[ipv6].String()))
	})
}

// tunnels are two that are each other's only peer.
type tunnels struct {
	each  [2]*encap.Tunnel
	peers [2]*encap.VTEPTable
}

func openTunnels(from, to string, plain bool) (ts *tunnels, err error) {
	ts = new(tunnels)
	addrs := [2]netip.Addr{netip.MustParseAddr(from), netip.MustParseAddr(to)}
	for i := range ts.each {
		ts.peers[i] = new(encap.VTEPTable)
		err = ts.peers[i].Set([]encap.Peer{{Name: peerName, Underlay: addrs[1-i]}})
		if err == nil {
			ts.each[i], err = encap.Open(encap.Config{Name: peerName, Local: addrs[i], Port: tunnelPort, Workers: 1, Peers: ts.peers[i], Plain: plain})
		}
		if err != nil {
			ts.close()
			return nil, err
		}
	}
	return ts, nil
}

func (ts *tunnels) close() {
	for _, t := range ts.each {
		if t != nil {
			_ = t.Close()
		}
	}
}

const peerName = "self-test"

// tunnel sends frames from one tunnel to another: as many of one length as fill a message, shorter ones, and the longest.
func (t *topology) tunnel() error { return t.underlay(loopbackMTU, t.tunnelOver) }

// loopbackMTU is the kernel's default.
const loopbackMTU = 65536

func (t *topology) tunnelOver(from, to string) error {
	ts, err := openTunnels(from, to, true)
	if err != nil {
		return err
	}
	defer ts.close()
	for _, sizes := range [][]int{repeated(1400, 40), repeated(60, frame.BurstSize), {1400, 1400, 900, 60, 1400}} {
		if err := t.carry(ts.each, sizes); err != nil {
			return fmt.Errorf("from %s to %s: %w", from, to, err)
		}
	}
	return ts.each[0].Segmentation()
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
