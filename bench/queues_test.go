package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	vswitch "tapyard/switch"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

const (
	queueFlows   = 64
	queueSenders = 4
	// queueWindow is how many frames of all senders may wait in the rings, which have 2,000 places each.
	queueWindow = 1000
)

// queuedPod is a pod with two queues that sends to a port in memory, by way of a switch of two workers.
type queuedPod struct {
	*tapPod
	sw    *vswitch.Switch
	sink  *porttest.Port
	conns [queueFlows]*net.UDPConn
	sent  atomic.Int64
}

func newQueuedPod(t *testing.T, cfg port.TAPConfig) *queuedPod {
	t.Helper()
	sw, err := vswitch.New(vswitch.Config{Workers: 2, Rings: cfg.Rings, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	must(t, sw.AddNetwork(vswitch.Network{VNI: coalesceVNI}))
	p := &queuedPod{tapPod: newTapPodOf(t, 1, cfg), sw: sw, sink: porttest.New("sink", 0)}
	mac, v4, v6 := tapAddresses(2)
	id, err := sw.Attach(p.sink, vswitch.PortConfig{Role: vswitch.RoleAccess, VNI: coalesceVNI})
	must(t, err)
	must(t, sw.AddStation(coalesceVNI, id, mac, []netip.Addr{v4, v6}))
	p.attach(t, sw)
	sw.Start()
	for i := range p.conns {
		a := p.v4
		if i%4 == 3 {
			a = p.v6
		}
		p.conns[i] = p.listenUDP(t, a, uint16(5000+i), false)
	}
	return p
}

// view returns the switch's view of the pod's port.
func (p *queuedPod) view(t *testing.T) vswitch.PortView {
	t.Helper()
	for _, v := range p.sw.Ports() {
		if v.ID == p.id && v.Port != nil {
			return v
		}
	}
	t.Fatal("the pod is not attached")
	return vswitch.PortView{}
}

// send sends n more numbered frames of each flow, the flows of a sender in turn.
func (p *queuedPod) send(t *testing.T, first, n int) {
	before := int64(p.view(t).Rx.Wire) - p.sent.Load()
	var wg sync.WaitGroup
	for s := range queueSenders {
		wg.Go(func() {
			for i := first; i < first+n; i++ {
				for f := s; f < queueFlows; f += queueSenders {
					_, to, to6 := tapAddresses(2)
					if f%4 == 3 {
						to = to6
					}
					if _, err := p.conns[f].WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, uint32(i)), netip.AddrPortFrom(to, 7)); err != nil {
						t.Error(err)
						return
					}
					p.sent.Add(1)
				}
				for p.sent.Load()+before-int64(p.view(t).Rx.Wire) > queueWindow && !t.Failed() {
					time.Sleep(50 * time.Microsecond)
				}
			}
		})
	}
	wg.Wait()
}

// reply sends answers of the sink to all flows until done is closed. A worker writes them by its own descriptor, which
// without steering has the kernel send what follows of the flow there.
func (p *queuedPod) reply(t *testing.T, done chan struct{}) {
	var replies []porttest.Frame
	mac, from4, from6 := tapAddresses(2)
	for f := range queueFlows {
		b := make([]byte, wire.EthernetLen+wire.IPv6Len+wire.UDPLen)
		eth := wire.EthernetFields{Dst: p.mac, Src: mac, EtherType: wire.EtherTypeIPv4}
		l4 := b[wire.EthernetLen+wire.IPv4MinLen:]
		if f%4 == 3 {
			eth.EtherType, l4 = wire.EtherTypeIPv6, b[wire.EthernetLen+wire.IPv6Len:]
			wire.IPv6(b[wire.EthernetLen:]).Encode(&wire.IPv6Fields{PayloadLen: wire.UDPLen, HopLimit: 64, NextHeader: wire.ProtoUDP, Src: from6, Dst: p.v6})
		} else {
			b = b[:wire.EthernetLen+wire.IPv4MinLen+wire.UDPLen]
			wire.IPv4(b[wire.EthernetLen:]).Encode(&wire.IPv4Fields{TotalLen: wire.IPv4MinLen + wire.UDPLen, TTL: 64, Protocol: wire.ProtoUDP, Src: from4, Dst: p.v4})
		}
		wire.Ethernet(b).Encode(&eth)
		wire.UDP(l4).Encode(&wire.UDPFields{SrcPort: 7, DstPort: uint16(5000 + f), Length: wire.UDPLen})
		replies = append(replies, porttest.Frame{Bytes: b})
	}
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Millisecond):
			p.sink.Inject(replies...)
		}
	}
}

// check makes sure that each flow arrived whole and in order.
func (p *queuedPod) check(t *testing.T, each int) {
	t.Helper()
	if _, err := p.sink.WaitSent(queueFlows*each, 30*time.Second); err != nil {
		dropped, _ := p.tap.KernelDrops()
		t.Fatalf("%v; the kernel dropped %d", err, dropped)
	}
	next := map[uint16]int{}
	for _, f := range p.sink.Sent() {
		var parsed wire.Parsed
		if wire.Parse(f.Bytes, false, &parsed); parsed.Proto != wire.ProtoUDP || parsed.DstPort != 7 {
			continue // the kernel's own
		}
		number := int(binary.BigEndian.Uint32(f.Bytes[parsed.Payload:]))
		if number != next[parsed.SrcPort] {
			t.Fatalf("flow from port %d: number %d where %d is due", parsed.SrcPort, number, next[parsed.SrcPort])
		}
		next[parsed.SrcPort]++
	}
	if len(next) != queueFlows {
		t.Errorf("%d flows arrived, want %d", len(next), queueFlows)
	}
}

// A pod with two queues has two workers, each with a good part of its flows and none that changes workers: no frame
// overtakes another of its flow. So it is when the port is closed, and opened and attached again, as by a restart.
func TestQueuesKeepTheOrderOfEveryFlow(t *testing.T) {
	rings := map[string]*port.Rings{"readwrite": nil}
	if r, err := port.OpenRings(2); err == nil {
		rings["io_uring"] = r
		defer r.Close()
	}
	each := 1600 // 102,400 frames
	if testing.Short() {
		each = 100
	}
	for name, r := range rings {
		t.Run(name, func(t *testing.T) {
			steering := port.NewSteering(2)
			defer steering.Close()
			cfg := port.TAPConfig{Queues: 2, Steering: steering, Rings: r}
			p := newQueuedPod(t, cfg)
			if v := p.view(t); len(v.Workers) != 2 || v.Workers[0] == v.Workers[1] {
				t.Fatalf("the queues are on workers %v", v.Workers)
			}
			done := make(chan struct{})
			go p.reply(t, done)
			p.send(t, 0, each)
			close(done)
			p.check(t, each)
			var shares []uint64
			for _, w := range p.sw.WorkerViews() {
				shares = append(shares, w.Rx.Wire)
			}
			if n := uint64(queueFlows * each); shares[0] < n/4 || shares[1] < n/4 {
				t.Errorf("the workers received %v frames of %d", shares, n)
			}
			p.sleeps(t)

			must(t, p.sw.Detach(context.Background(), p.id))
			must(t, p.tap.Close())
			p.ns.Do(t, func() {
				cfg.Device, cfg.PortName = podDevice, "again"
				p.open(t, cfg)
			})
			p.attach(t, p.sw)
			p.awaitCarrier(t)
			p.send(t, each, each/4)
			p.check(t, each+each/4)
			l, err := p.sw.Stop()
			must(t, err)
			must(t, l.Check())
		})
	}
}

// awaitCarrier waits until the pod's kernel has noticed that the device is attached again.
func (p *queuedPod) awaitCarrier(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		out, err := p.ns.Command("ip", "link", "show", podDevice).CombinedOutput()
		if err == nil && strings.Contains(string(out), "LOWER_UP") && strings.Contains(string(out), "state UP") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// sleeps makes sure that the workers don't wake up while nobody sends.
func (p *queuedPod) sleeps(t *testing.T) {
	t.Helper()
	wakeUps := func() (n [2]string) {
		for i, w := range p.sw.WorkerViews() {
			status, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", w.Thread))
			must(t, err)
			_, after, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
			n[i], _, _ = strings.Cut(strings.TrimSpace(after), "\n")
		}
		return n
	}
	for range 5 { // the kernel may have something of its own to say
		before := wakeUps()
		time.Sleep(300 * time.Millisecond)
		if wakeUps() == before {
			return
		}
	}
	t.Errorf("the workers keep waking up: %v", wakeUps())
}
