package vswitch

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// probing starts a Probe of pod A's address and returns when the question is in the slow path's queue.
func (r *rig) probing(addr netip.Addr) <-chan error {
	result := make(chan error, 1)
	go func() { result <- r.sw.Probe(r.t.Context(), r.ids[r.podA], macA, addr) }()
	synctest.Wait()
	return result
}

// asked drives the slow path and returns the question that pod A got.
func (r *rig) asked() gopacket.Packet {
	r.t.Helper()
	r.podA.Reset()
	r.sw.slow.drain()
	sent := r.podA.Sent()
	if len(sent) != 1 {
		r.t.Fatalf("pod A got %d frames, want a question", len(sent))
	}
	return gopacket.NewPacket(sent[0].Bytes, layers.LayerTypeEthernet, gopacket.Default)
}

// answerTo is what a station says to a question, in the words of gopacket.
func answerTo(t *testing.T, question gopacket.Packet, addr netip.Addr, mac wire.MAC) []byte {
	from := wire.MAC(question.LinkLayer().(*layers.Ethernet).SrcMAC)
	if addr.Is4() {
		q := question.Layer(layers.LayerTypeARP).(*layers.ARP)
		a := *q
		a.Operation, a.SourceHwAddress, a.SourceProtAddress = layers.ARPReply, mac[:], addr.AsSlice()
		a.DstHwAddress, a.DstProtAddress = q.SourceHwAddress, q.SourceProtAddress
		return packet(t, ethernet(mac, from, layers.EthernetTypeARP), &a)
	}
	to, _ := netip.AddrFromSlice(question.NetworkLayer().(*layers.IPv6).SrcIP)
	return advert(t, mac, from, addr, to)
}

func advert(t *testing.T, mac, to wire.MAC, addr, dst netip.Addr) []byte {
	return packet(t, ethernet(mac, to, layers.EthernetTypeIPv6),
		&layers.IPv6{NextHeader: layers.IPProtocolICMPv6, HopLimit: 255, SrcIP: addr.AsSlice(), DstIP: dst.AsSlice()},
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborAdvertisement, 0)},
		&layers.ICMPv6NeighborAdvertisement{Flags: 0x60, TargetAddress: addr.AsSlice(),
			Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: mac[:]}}})
}

func TestProbe(t *testing.T) {
	for _, addr := range []netip.Addr{a4, a6} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, port.CapsAll)
			one, two := r.probing(addr), r.probing(addr) // one answer is for all that wait
			r.sw.slow.drain()
			question := gopacket.NewPacket(r.podA.Sent()[0].Bytes, layers.LayerTypeEthernet, gopacket.Default)
			if eth := question.LinkLayer().(*layers.Ethernet); wire.MAC(eth.DstMAC) != macA {
				t.Errorf("the question goes to %v", eth.DstMAC)
			}
			r.run(r.podA, plain(answerTo(t, question, addr, macA)))
			if err := errors.Join(<-one, <-two); err != nil {
				t.Error(err)
			}
			if n := len(r.podB.Sent()) + len(r.host.Sent()) + len(r.tunnel.Sent()); n > 0 {
				t.Errorf("%d frames went elsewhere", n)
			}
			if d := r.drops(r.podA); len(d) > 0 || len(r.sw.slow.waiting) > 0 {
				t.Errorf("dropped %v, waiting %v", d, r.sw.slow.waiting)
			}
		})
	}
}

// A station that has sent and been sent all that its limits allow is asked, and answers, nevertheless.
func TestProbeOfABusyStation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, port.CapsAll)
		r.must(r.sw.Detach(t.Context(), r.ids[r.podA]))
		id, err := r.sw.Attach(r.podA, PortConfig{Role: RoleAccess, VNI: testVNI, Sent: Rate{8, 8}, Received: Rate{8, 8}})
		r.must(err)
		r.ids[r.podA] = id
		r.must(r.sw.AddStation(testVNI, id, macA, []netip.Addr{a4, a6}))
		to, from := plain(udp(t, macB, macA, b4, a4, 64, "to")), plain(udp(t, macA, macB, a4, b4, 64, "from"))
		r.run(r.podB, to, to)
		r.run(r.podA, from, from)
		if got := r.drops(r.podA); got["bandwidth_egress"] != 1 || got["bandwidth_ingress"] != 1 {
			t.Fatalf("drops %v, want one of each direction", got)
		}
		for _, addr := range []netip.Addr{a4, a6} {
			result := r.probing(addr)
			r.run(r.podA, plain(answerTo(t, r.asked(), addr, macA)), from)
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
		if got := r.drops(r.podA); got["bandwidth_egress"] != 3 {
			t.Errorf("drops %v, want three of what was sent", got)
		}
	})
}

// A probe asks some times, and takes no answer from elsewhere, from another MAC, for another address, or
// that is none.
func TestProbeWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, port.CapsAll)
		result := r.probing(a4)
		question := r.asked()
		r.run(r.podB, plain(answerTo(t, question, a4, macA)))
		r.run(r.podA, plain(answerTo(t, question, a4, macB)), plain(answerTo(t, question, b4, macA)),
			plain(arp(t, macA, macA, layers.ARPRequest, a4, nowhere4)), plain(advert(t, macA, proberMAC, a6, wire.LinkLocal(proberMAC))))
		for range len(probeWaits) - 1 {
			select {
			case err := <-result:
				t.Fatalf("ended with %v before it had asked often enough", err)
			case <-r.waitAsked():
			}
			r.asked()
		}
		if err := <-result; !errors.Is(err, errNoAnswer) || !strings.Contains(err.Error(), a4.String()) || !strings.Contains(err.Error(), "port a") {
			t.Errorf("error %v", err)
		}
		if len(r.sw.slow.waiting) > 0 {
			t.Errorf("still waiting: %v", r.sw.slow.waiting)
		}
		// An answer that comes too late is one that nobody asked for.
		before := r.drops(r.podA)["local_unhandled"]
		r.run(r.podA, plain(answerTo(t, question, a4, macA)))
		if after := r.drops(r.podA)["local_unhandled"]; after != before+1 {
			t.Errorf("local_unhandled %d, then %d", before, after)
		}
	})
}

// waitAsked returns when the next question is in the queue.
func (r *rig) waitAsked() <-chan question {
	seen := make(chan question, 1)
	go func() {
		q := <-r.sw.slow.asks
		r.sw.slow.asks <- q
		seen <- q
	}()
	return seen
}

func TestProbeRefuses(t *testing.T) {
	r := newRig(t, port.CapsAll)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.sw.Probe(ctx, r.ids[r.podA], macA, a4); !errors.Is(err, context.Canceled) {
		t.Errorf("after its context: %v", err)
	}
	for _, p := range []*porttest.Port{r.host, r.tunnel} {
		if err := r.sw.Probe(t.Context(), r.ids[p], macA, a4); err == nil || errors.Is(err, errNoAnswer) {
			t.Errorf("port %s: %v", p.Name(), err)
		}
	}
	if err := r.sw.Probe(t.Context(), 4000, macA, a4); err == nil {
		t.Error("a port that isn't there was probed")
	}
	r.sw.slow.drain() // a question whose port has gone is forgotten
}

// Some seconds after it has answered, a station's kernel looks whether the prober is still there; it is.
func TestProberAnswers(t *testing.T) {
	r := newRig(t, port.CapsAll)
	link := wire.LinkLocal(proberMAC)
	r.run(r.podA, plain(packet(t, ethernet(macA, proberMAC, layers.EthernetTypeIPv6),
		&layers.IPv6{NextHeader: layers.IPProtocolICMPv6, HopLimit: 255, SrcIP: a6.AsSlice(), DstIP: link.AsSlice()},
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)},
		&layers.ICMPv6NeighborSolicitation{TargetAddress: link.AsSlice(), Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: macA[:]}}})))
	_, p := sentTo(t, r.podA)
	na := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if !na.TargetAddress.Equal(link.AsSlice()) || na.Router() || wire.MAC(na.Options[0].Data) != proberMAC {
		t.Errorf("answer %+v", na)
	}
	if d := r.drops(r.podA); len(d) > 0 {
		t.Errorf("dropped %v", d)
	}
}

// Stations that answer are probed by many at once while ports come and go.
func TestProbeWhileRunning(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.sw.Start()
	ctx, cancel := context.WithCancel(t.Context())
	var station, rest sync.WaitGroup
	station.Go(func() { // pod A
		for seen := 0; ctx.Err() == nil; {
			sent := r.podA.Sent()
			for _, f := range sent[seen:] {
				question := gopacket.NewPacket(f.Bytes, layers.LayerTypeEthernet, gopacket.Default)
				addr := a4
				if question.Layer(layers.LayerTypeARP) == nil {
					addr = a6
				}
				r.podA.Inject(plain(answerTo(t, question, addr, macA)))
			}
			seen = len(sent)
			time.Sleep(time.Millisecond)
		}
	})
	for _, addr := range []netip.Addr{a4, a6, a4, a6} {
		rest.Go(func() {
			for range 20 {
				if err := r.sw.Probe(t.Context(), r.ids[r.podA], macA, addr); err != nil {
					t.Error(err)
				}
			}
		})
	}
	rest.Go(func() {
		for range 20 {
			p := porttest.New("c", port.CapsAll)
			id, err := r.sw.Attach(p, PortConfig{Role: RoleAccess, VNI: testVNI})
			if err != nil {
				t.Error(err)
				return
			}
			short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if err := r.sw.Probe(short, id, macB, c4); err == nil {
				t.Error("a station that isn't there has answered")
			}
			cancel()
			if err := errors.Join(r.sw.Detach(t.Context(), id), p.Close()); err != nil {
				t.Error(err)
			}
		}
	})
	rest.Wait()
	cancel()
	station.Wait()
	if _, err := r.sw.Stop(); err != nil {
		t.Error(err)
	}
	if err := r.sw.Probe(t.Context(), r.ids[r.podA], macA, a4); err == nil || errors.Is(err, errNoAnswer) {
		t.Errorf("after Stop: %v", err)
	}
}
