package vswitch

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/flow"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// flowsOf lists what the switch tracks: ends, state and the port that it began at.
func (r *rig) flowsOf() []string {
	var list []string
	for _, e := range r.sw.Flows().Entries(r.sw.now().UnixNano(), 100, func(*flow.Entry) bool { return true }) {
		list = append(list, fmt.Sprintf("%d %d %s > %s %s at %d", e.VNI, e.Proto, e.From, e.To, e.State, e.Owner))
	}
	return list
}

func tcp4(t testing.TB, srcMAC, dstMAC wire.MAC, src, dst netip.AddrPort, l layers.TCP) porttest.Frame {
	l.SrcPort, l.DstPort = layers.TCPPort(src.Port()), layers.TCPPort(dst.Port())
	return plain(packet(t, ethernet(srcMAC, dstMAC, layers.EthernetTypeIPv4),
		&layers.IPv4{TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}, &l, gopacket.Payload("")))
}

// A connection between a pod and a peer's pod: the answers come in at another port.
func TestConnectionsAreTracked(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.sw.SetFlows(true)
	pod, remote := netip.AddrPortFrom(a4, 40000), netip.AddrPortFrom(remote4, 80)
	for _, c := range []struct {
		back  bool
		flags layers.TCP
		state string
	}{
		{false, layers.TCP{SYN: true}, "opening"}, {true, layers.TCP{SYN: true, ACK: true}, "answered"}, {false, layers.TCP{ACK: true}, "established"},
		{true, layers.TCP{ACK: true}, "established"}, {true, layers.TCP{FIN: true, ACK: true}, "answerer_closing"}, {false, layers.TCP{FIN: true, ACK: true}, "closed"},
	} {
		if c.back {
			f := tcp4(t, peerMAC, routerMAC, remote, pod, c.flags)
			f.Meta.VNI = testVNI
			r.run(r.tunnel, f)
		} else {
			r.run(r.podA, tcp4(t, macA, routerMAC, pod, remote, c.flags))
		}
		want := fmt.Sprintf("[1 6 %s > %s %s at %d]", pod, remote, c.state, r.ids[r.podA])
		if got := fmt.Sprint(r.flowsOf()); got != want {
			t.Errorf("%+v: %s, want %s", c.flags, got, want)
		}
	}
	if err := r.sw.Detach(context.Background(), r.ids[r.podA]); err != nil {
		t.Fatal(err)
	}
	if got := r.flowsOf(); len(got) != 0 {
		t.Errorf("%s stayed when its port went", got)
	}
}

func TestWhatHasNoWayOutIsNotTracked(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.sw.SetFlows(true)
	for name, b := range map[string][]byte{
		"no route":      udp(t, macA, routerMAC, a4, nowhere4, 64, "x"),
		"TTL exceeded":  udp(t, macA, routerMAC, a4, remote4, 1, "x"),
		"flooded":       udp(t, macA, wire.Broadcast, a4, b4, 64, "x"),
		"martian":       udp(t, macA, routerMAC, ip("127.0.0.1"), remote4, 64, "x"),
		"to the switch": udp(t, macA, routerMAC, a4, local4, 64, "x"),
		"hairpin":       udp(t, macB, macA, b4, a4, 64, "x"),
	} {
		r.run(r.podA, plain(b))
		if got := r.flowsOf(); len(got) != 0 {
			t.Errorf("%s: %s", name, got)
		}
	}
	r.run(r.podA, plain(udp(t, macA, macB, a4, b4, 64, strings.Repeat("x", 3)))) // so that the test can fail
	if got := r.flowsOf(); len(got) != 1 {
		t.Errorf("switched: %s", got)
	}
	if r.sw.SetFlows(false); r.sw.Flows() != nil {
		t.Error("flows are kept although they are off")
	}
}

// turns is a receive queue whose frames take turns.
type turns struct {
	frames []porttest.Frame
	at     int
}

func (q *turns) FD() int { return -1 }
func (q *turns) Recv(_ int, b *frame.Burst, p *frame.Pool, _ *port.Stats) bool {
	for !b.Full() {
		one := &q.frames[q.at]
		copy(p.Reserve(0, len(one.Bytes)), one.Bytes)
		b.Append(p.Commit(len(one.Bytes)))
		if q.at++; q.at == len(q.frames) {
			q.at = 0
		}
	}
	return true
}

// BenchmarkFlows is a whole pass over frames of 1,000 flows that take turns, with 100,000 in the table or none.
func BenchmarkFlows(b *testing.B) {
	for name, dst := range map[string]wire.MAC{"switched": macB, "routed": routerMAC} {
		for _, on := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/flows=%v", name, on), func(b *testing.B) {
				r := newRig(b, port.CapsAll)
				r.sw.SetFlows(on)
				in := &turns{frames: flowFrames(b, dst, 1000)}
				ps := r.sw.snapshot.Load().port(r.ids[r.podA])
				ps.rx = []port.RxQueue{&turns{frames: flowFrames(b, dst, 100_000)}}
				ps.single = false
				for _, out := range []*porttest.Port{r.podB, r.tunnel} {
					o := r.sw.snapshot.Load().port(r.ids[out])
					o.tx[0] = &blackHole{&o.stats[0]}
				}
				w := r.sw.workers[0]
				w.reader.Online()
				for range 100_000/frame.BurstSize + 1 {
					w.pass(eventOf(r.ids[r.podA]))
				}
				ps.rx[0] = in
				for b.Loop() {
					w.pass(eventOf(r.ids[r.podA]))
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/frame.BurstSize, "ns/frame")
				if t := r.sw.Flows(); on && t.Stats().Live < 99_999 {
					b.Fatal(t)
				}
			})
		}
	}
}

// flowFrames are frames of 60 bytes from pod a to b, or to a peer's pod, of as many flows.
func flowFrames(b *testing.B, dst wire.MAC, n int) []porttest.Frame {
	to := b4
	if dst == routerMAC {
		to = remote4
	}
	f := udp(b, macA, dst, a4, to, 64, strings.Repeat("x", 18))
	frames := make([]porttest.Frame, n)
	for i := range frames {
		one := append([]byte(nil), f...)
		binary.BigEndian.PutUint32(one[34:], uint32(i)) // both ports
		frames[i] = plain(one)
	}
	return frames
}
