package bench

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/wire"
)

// hostileSpec is an attack without a machine.
func hostileSpec() attackSpec {
	own := station{wire.MAC{10, 0, 0, 0, 0, 3}, netip.MustParseAddr("10.244.1.3"), netip.MustParseAddr("fd00::3")}
	victim := station{wire.MAC{10, 0, 0, 0, 0, 4}, netip.MustParseAddr("10.244.1.4"), netip.MustParseAddr("fd00::4")}
	router := station{wire.MAC{2, 0, 0, 0, 0, 1}, netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00::1")}
	return attackSpec{Own: own, Victim: victim, Router: router}
}

// An attack is wrong in what it claims and right in everything else, or it would be dropped for another
// reason than its own: gopacket reads it, and computes the checksums that it has.
func TestAttackFramesAreWellFormed(t *testing.T) {
	for _, kind := range attackKinds {
		if kind.name == "gso" { // its lies need a socket
			continue
		}
		t.Run(kind.name, func(t *testing.T) {
			next := kind.frames(&crafter{spec: hostileSpec(), rand: rand.New(rand.NewPCG(1, 0))})
			buf := make([]byte, attackFrame)
			seen := map[string]bool{}
			for range 64 {
				n := next(buf)
				p := gopacket.NewPacket(buf[:n], layers.LayerTypeEthernet, gopacket.Default)
				if p.ErrorLayer() != nil {
					t.Fatalf("gopacket reads %v: %v", p, p.ErrorLayer())
				}
				if again := reserialized(t, p); !bytes.HasPrefix(again, buf[:n]) && !bytes.HasPrefix(buf[:n], again) {
					t.Fatalf("gopacket makes\n%x of\n%x", again, buf[:n])
				}
				seen[string(buf[:n])] = true
			}
			if len(seen) < 2 {
				t.Error("all frames are alike")
			}
		})
	}
}

// reserialized is what gopacket makes of the fields that it has read, checksums anew, except for a UDP checksum
// that was left out.
func reserialized(t *testing.T, p gopacket.Packet) []byte {
	t.Helper()
	var l []gopacket.SerializableLayer
	for _, layer := range p.Layers() {
		switch v := layer.(type) {
		case *layers.TCP:
			_ = v.SetNetworkLayerForChecksum(p.NetworkLayer())
		case *layers.ICMPv6:
			_ = v.SetNetworkLayerForChecksum(p.NetworkLayer())
		case *layers.UDP:
			l = append(l, gopacket.Payload(append(v.Contents, v.Payload...)))
			continue
		case gopacket.Payload, *gopacket.Payload:
			continue // of UDP
		}
		l = append(l, layer.(gopacket.SerializableLayer))
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The same seed gives the same frames, so that both runs of a pair send the same.
func TestAttacksCanBeReplayed(t *testing.T) {
	for _, kind := range attackKinds {
		if kind.name == "gso" {
			continue
		}
		var streams [2][]byte
		for i := range streams {
			next := kind.frames(&crafter{spec: hostileSpec(), rand: rand.New(rand.NewPCG(7, 0))})
			buf := make([]byte, attackFrame)
			for range 16 {
				streams[i] = append(streams[i], buf[:next(buf)]...)
			}
		}
		if string(streams[0]) != string(streams[1]) {
			t.Errorf("two runs of %s differ", kind.name)
		}
	}
}

// The kernel answers an asker's questions for its own addresses, and nobody answers for others.
func TestAskerAgainstTheKernel(t *testing.T) {
	ownTempDir(t)
	s, err := prepare(Config{Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	lab := twoPods(t)
	ends := [2]pod{{netns: lab.Pods[0].Netns}, {netns: lab.Pods[1].Netns}}
	var stations [2]station
	for i := range ends {
		if err := ends[i].readMAC(); err != nil {
			t.Fatal(err)
		}
		copy(stations[i].MAC[:], ends[i].mac)
		stations[i].IP4, stations[i].IP6 = lab.Pods[i].Addresses[0], wire.LinkLocal(stations[i].MAC)
	}
	absent := netip.MustParseAddr("10.9.0.77")
	for _, c := range []struct {
		target netip.Addr
		want   wire.MAC
	}{{stations[1].IP4, stations[1].MAC}, {stations[1].IP6, stations[1].MAC}, {absent, wire.MAC{}}} {
		r := s.askFor(t, askSpec{Netns: netnsPath(ends[0].netns), Device: podDevice, Own: stations[0], Every: askEvery, Targets: []netip.Addr{c.target}})
		if r.MACs[c.target] != c.want {
			t.Errorf("%s is at %s, want %s: %+v", c.target, r.MACs[c.target], c.want, r)
		}
		if c.target == absent && (r.Answered != 0 || r.Retries != r.Asked-1) || c.target == stations[1].IP4 && r.Answered < r.Asked-r.Retries-1 {
			t.Errorf("%s: %+v", c.target, r)
		}
	}
}

// askFor asks for 2 s, of which an IPv6 address needs one to become usable.
func (s *session) askFor(t *testing.T, spec askSpec) (r askResult) {
	t.Helper()
	w, err := startWorker(t.Context(), s.exe, verbAsk, spec, s.load)
	if err != nil {
		t.Fatal(err)
	}
	defer w.abandon()
	if err := errors.Join(w.release(), pause(t.Context(), 2*time.Second), w.release(), w.collect(&r)); err != nil {
		t.Fatal(err)
	}
	return r
}
