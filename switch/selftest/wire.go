package selftest

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Wire is the name of the proof of super-frames in slices and small frames in bundles.
const Wire = "wire"

// wire has two tunnels agree upon slices and bundles, over datagrams as Ethernet takes, and sends super-frames and small
// frames from one to the other.
func (t *topology) wire() error { return t.underlay(mtu, t.wireOver) }

func (t *topology) wireOver(from, to string) error {
	ts, err := openTunnels(from, to, false)
	if err != nil {
		return err
	}
	defer ts.close()
	s := slices{t: t, ts: ts, tx: ts.each[0].Tx(0, new(port.Stats))}
	if err = s.agree(); err == nil {
		err = errors.Join(s.carry(1), s.carry(3000), s.carry(65000), t.carry(ts.each, smallFrames()))
	}
	if err != nil {
		return fmt.Errorf("from %s to %s: %w", from, to, err)
	}
	return nil
}

// smallFrames are the sizes of a burst of small frames that takes several datagrams.
func smallFrames() []int {
	sizes := repeated(60, frame.BurstSize)
	for i := range sizes {
		sizes[i] += 4 * i
	}
	return sizes
}

// slices sends super-frames from the first tunnel to the second.
type slices struct {
	t  *topology
	ts *tunnels
	tx port.TxQueue
}

// agree sends until the first tunnel uses slices. What it sends before is dropped: it isn't the TCP that it says.
func (s *slices) agree() error {
	for start := time.Now(); !s.ts.peers[0].LookupName(peerName).Slices(); time.Sleep(100 * time.Microsecond) {
		if time.Since(start) > patience {
			return fmt.Errorf("two tunnels don't agree upon slices within %v: %s", patience, s.ts.peers[0].LookupName(peerName).Wire())
		}
		b := s.send(1000)
		b.Release()
		s.receive(nil)
	}
	return nil
}

// sliced is metadata of which no field is 0.
var sliced = frame.Meta{VNI: 1, Peer: 1, GSOType: wire.GSOTCPv6, NeedsCsum: true, HdrLen: 2, GSOSize: 3, CsumStart: 4, CsumOffset: 5}

// send sends a frame with n bytes of payload, and returns it.
func (s *slices) send(n int) (b frame.Burst) {
	buf := s.t.pool.Reserve(0, wire.EthernetLen+n)
	wire.Ethernet(buf).Encode(&wire.EthernetFields{Dst: wire.MAC(mac(1)), Src: wire.MAC(mac(2)), EtherType: experiment})
	copy(buf[wire.EthernetLen:], payload(n))
	f := s.t.pool.Commit(len(buf))
	f.Meta = sliced
	b.Append(f)
	s.tx.Send(&b)
	s.tx.Flush()
	return b
}

// receive has both tunnels receive, and calls seen with what arrives at the second one.
func (s *slices) receive(seen func(*frame.Frame)) {
	for i, tunnel := range s.ts.each {
		var in frame.Burst
		tunnel.Rx()[0].Recv(0, &in, s.t.parts, new(port.Stats))
		if i == 1 && seen != nil {
			for _, f := range in.Frames() {
				if s.t.spoil != nil {
					s.t.spoil(f)
				}
				seen(f)
			}
		}
		in.Release()
	}
}

// carry sends a super-frame and compares what arrives.
func (s *slices) carry(n int) (err error) {
	arrived := false
	s.receive(nil) // those of agree
	b := s.send(n)
	defer b.Release()
	want := b.Frames()[0].Bytes()
	for start := time.Now(); !arrived; {
		s.receive(func(f *frame.Frame) {
			if arrived = true; f.Meta != sliced || !bytes.Equal(f.Bytes(), want) {
				err = fmt.Errorf("a super-frame of %d bytes arrived changed, as %d bytes with %+v", len(want), f.Len(), f.Meta)
			}
		})
		if time.Since(start) > patience {
			return fmt.Errorf("a super-frame of %d bytes didn't arrive", len(want))
		}
	}
	return err
}
