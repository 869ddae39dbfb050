package port

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// newQueuedPod is newPod with several queues.
func newQueuedPod(t testing.TB, n, queues int) *pod {
	t.Helper()
	s := NewSteering(queues)
	t.Cleanup(func() { check(t, s.Close()) })
	return newPodOf(t, n, TAPConfig{Queues: queues, Steering: s})
}

// drain empties queue q and calls f for each frame.
func (p *pod) drain(q int, f func(b []byte, parsed *wire.Parsed)) {
	for {
		var b frame.Burst
		more := p.tap.Rx()[q].Recv(0, &b, p.pool, &p.st)
		for _, fr := range b.Frames() {
			var parsed wire.Parsed
			wire.Parse(fr.Bytes(), fr.IsSuper(), &parsed)
			f(fr.Bytes(), &parsed)
		}
		b.Release()
		if !more {
			return
		}
	}
}

// silence ends what the pod's kernel sends on its own, which is MLD.
func (p *pod) silence(t *testing.T) {
	p.ns.Do(t, func() { check(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0)) })
	for q := range p.tap.Rx() {
		p.drain(q, func([]byte, *wire.Parsed) {})
	}
}

// What the pod's kernel sends comes out of the queue that the model says: UDP and TCP flows in both families, each
// wholly out of one queue, and all fragments of all datagrams between two addresses.
func TestQueuesBySteering(t *testing.T) {
	const queues = 3
	p := newQueuedPod(t, 1, queues)
	for q := range queues {
		p.drain(q, func([]byte, *wire.Parsed) {})
	}
	for _, to := range []netip.Addr{podIPv4(2), podIPv6(2)} {
		from := podIPv4(1)
		if to.Is6() {
			from = podIPv6(1)
		}
		for range 24 {
			conn := p.listen(t, from, 0)
			for range 5 {
				_, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, 7))
				check(t, err)
			}
			_, err := conn.WriteToUDPAddrPort(make([]byte, 4000), netip.AddrPortFrom(to, 7)) // in fragments
			check(t, err)
		}
		p.ns.Do(t, func() {
			for range 8 { // the SYN is what there is of them: nobody answers
				conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 80).String(), time.Millisecond)
				if err == nil {
					conn.Close()
				}
			}
		})
	}
	flows, frames, fragments := map[string]int{}, make([]int, queues), map[netip.Addr]int{}
	for q := range queues {
		p.drain(q, func(b []byte, parsed *wire.Parsed) {
			if want := queueOf(b, queues); q != want {
				t.Errorf("out of queue %d, want %d: % x", q, want, b[:min(len(b), 60)])
			}
			frames[q]++
			if parsed.Fragment {
				fragments[netip.AddrFrom16(parsed.Dst)]++
				return
			}
			if parsed.Proto == wire.ProtoUDP || parsed.Proto == wire.ProtoTCP {
				flows[fmt.Sprint(parsed.Proto, parsed.Dst, parsed.SrcPort)]++
			}
		})
	}
	if len(flows) != 2*(24+8) || min(frames[0], frames[1], frames[2]) < 20 || len(fragments) != 2 {
		t.Errorf("%d flows, %v frames by queue, fragments to %v", len(flows), frames, fragments)
	}
}

// The device has one drop counter, whichever queue was full; each has a ring of its own.
func TestKernelDropsOfQueues(t *testing.T) {
	p := newQueuedPod(t, 1, 2)
	p.silence(t)
	before := kernelDrops(t, p.tap)
	const flows, each = 16, 300 // a ring has 500 to 1,000 places
	for range flows {
		conn := p.listen(t, podIPv4(1), 0)
		for range each {
			_, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(podIPv4(2), 7))
			check(t, err)
		}
	}
	var received [2]int
	for q := range received {
		p.drain(q, func([]byte, *wire.Parsed) { received[q]++ })
	}
	dropped := int(kernelDrops(t, p.tap) - before)
	if dropped == 0 || received[0]+received[1]+dropped != flows*each || min(received[0], received[1]) < 500 {
		t.Errorf("%d sent, %v received, %d dropped by the kernel", flows*each, received, dropped)
	}
}

// Whoever opens the device anew, in the pod, has all its queues and its steering again. What any worker sends arrives,
// and Remove takes the device away.
func TestQueuesAreReopened(t *testing.T) {
	p := newQueuedPod(t, 2, 2)
	sink := p.listen(t, podIPv4(2), 7)
	steering := p.tap.cfg.Steering
	for queues := 2; queues > 0; queues-- {
		check(t, p.tap.Close())
		p.ns.Do(t, func() {
			var err error
			if queues == 1 { // the agent has fewer workers now
				steering = NewSteering(1)
			}
			p.tap, err = OpenTAP(TAPConfig{Device: "eth0", PortName: "p", Queues: 2, Steering: steering})
			check(t, err)
			n, err := attachedQueues("eth0")
			check(t, err)
			if n != queues || len(p.tap.Rx()) != queues || p.tap.Unsteered() != nil {
				t.Errorf("%d queues attached, %d polled, %v; want %d", n, len(p.tap.Rx()), p.tap.Unsteered(), queues)
			}
		})
		for worker := range 3 {
			p.tx = p.tap.Tx(worker, &p.st)
			p.send(t, frame.Meta{}, udpFrame([]byte("still there")))
			expectDatagrams(t, sink, []byte("still there"), 100)
		}
		conn := p.listen(t, podIPv4(2), 0)
		for i := range 8 {
			_, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(podIPv4(1), uint16(7+i)))
			check(t, err)
		}
		sent, queue := 0, map[uint16]int{}
		for deadline := time.Now().Add(patience); sent < 8 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			for q := range p.tap.Rx() {
				p.drain(q, func(b []byte, parsed *wire.Parsed) {
					if parsed.Proto != wire.ProtoUDP {
						return
					}
					queue[binary.BigEndian.Uint16(b[36:])] = q
					sent++
					if q != queueOf(b, queues) {
						t.Errorf("out of queue %d of %d: % x", q, queues, b)
					}
				})
			}
		}
		if sent != 8 || len(queue) != 8 {
			t.Errorf("%d frames to ports %v", sent, queue)
		}
	}
	check(t, p.tap.Remove())
	if !p.tap.closed || p.tap.Gone() {
		t.Error("the port is not closed")
	}
	p.ns.Do(t, func() {
		if _, err := attachedQueues("eth0"); err == nil {
			t.Error("after Remove the device is there")
		}
	})
}

// createMultiQueueTAP is CreateTAP for a device of several queues.
func createMultiQueueTAP(device string) error {
	tap, err := MakeTAP(TAPConfig{Device: device, Queues: 2})
	if err != nil {
		return err
	}
	return errors.Join(tap.Persist(), tap.Close())
}

// A second agent gets no queue, though the kernel would give it one; a predecessor that is about to go is waited for.
func TestQueuesHaveOneOwner(t *testing.T) {
	check(t, createMultiQueueTAP("tmp0"))
	s := NewSteering(2)
	defer s.Close()
	cfg := TAPConfig{Device: "tmp0", PortName: "first", Queues: 2, Steering: s}
	first, err := OpenTAP(cfg)
	check(t, err)
	if !testing.Short() { // this takes busyWait, 2 s
		if _, err := OpenTAP(cfg); !errors.Is(err, ErrDeviceBusy) || !strings.Contains(err.Error(), "tmp0") {
			t.Errorf("a second OpenTAP: %v, want ErrDeviceBusy with the device's name", err)
		}
	}
	time.AfterFunc(50*time.Millisecond, func() { first.Close() })
	second, err := OpenTAP(cfg)
	check(t, err)
	third := &TAP{cfg: cfg} // it has looked before second attached
	check(t, third.attachQueue(0))
	if err := errors.Join(third.checkAlone(), second.checkAlone()); !errors.Is(err, ErrDeviceBusy) {
		t.Errorf("two owners: %v, want ErrDeviceBusy", err)
	}
	check(t, third.Close())
	check(t, second.checkAlone())
	check(t, second.Remove())
}

// A device of the other kind is refused with what is wrong.
func TestQueuesNeedTheirKind(t *testing.T) {
	for kind, c := range map[string]struct {
		create func(string) error
		queues int
	}{"one queue": {CreateTAP, 2}, "several queues": {createMultiQueueTAP, 1}} {
		check(t, c.create("tmp0"))
		s := NewSteering(2)
		if tap, err := OpenTAP(TAPConfig{Device: "tmp0", PortName: "p", Queues: c.queues, Steering: s}); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "made for "+map[int]string{1: "one", 2: "several"}[c.queues]) {
			t.Errorf("%d queues of a device made for %s: %v, %v", c.queues, kind, tap, err)
		}
		tap, err := OpenTAP(TAPConfig{Device: "tmp0", PortName: "p", Queues: 3 - c.queues, Steering: s})
		check(t, err)
		check(t, tap.Remove())
		check(t, s.Close())
	}
}

// Where the kernel refuses eBPF, as under a container's seccomp profile, the device has one queue, through which all
// frames come in their order, and the port says why.
func TestQueuesWithoutBPF(t *testing.T) {
	var s *Steering
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the filter ends with the thread
		refuseSyscall(t, unix.SYS_BPF, unix.EPERM)
		s = NewSteering(2)
		_, err = s.queues(2)
	}()
	<-done
	if err == nil {
		t.Fatal("a thread without bpf(2) has loaded a program")
	}
	p := newPodOf(t, 1, TAPConfig{Queues: 2, Steering: s})
	if err := p.tap.Unsteered(); len(p.tap.Rx()) != 1 || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "one queue instead of 2") {
		t.Errorf("%d queues: %v", len(p.tap.Rx()), err)
	}
	p.silence(t)
	const flows, rounds = 20, 10
	var conns [flows]*net.UDPConn
	for i := range conns {
		conns[i] = p.listen(t, podIPv4(1), 0)
	}
	for n := range flows * rounds {
		_, err := conns[n%flows].WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, uint32(n)), netip.AddrPortFrom(podIPv4(2), 7))
		check(t, err)
	}
	next := uint32(0)
	p.drain(0, func(b []byte, parsed *wire.Parsed) {
		if n := binary.BigEndian.Uint32(b[parsed.Payload:]); n != next {
			t.Errorf("frame %d where %d is due", n, next)
		}
		next++
	})
	if next != flows*rounds {
		t.Errorf("%d frames of %d", next, flows*rounds)
	}
	check(t, s.Close())
}
