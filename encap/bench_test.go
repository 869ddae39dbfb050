package encap

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// BenchmarkLoopback sends bursts of small frames through lo and takes the processor time of Send (which is
// mostly the kernel's way through lo) and that of Recv apart.
func BenchmarkLoopback(b *testing.B) {
	for name, local := range map[string]string{"IPv4": "127.0.0.1", "IPv6": "::1"} {
		for ecn, tos := range map[string]uint8{"not-ect": 0, "ect0": 2, "ce": 3} {
			b.Run(name+"/"+ecn, func(b *testing.B) { benchmarkLoopback(b, netip.MustParseAddr(local), tos, oneFlow) })
		}
		for kind, load := range map[string]load{"flows": {flows: 64, spread: 1}, "sizes": {flows: 64, spread: 137}} {
			b.Run(name+"/"+kind, func(b *testing.B) { benchmarkLoopback(b, netip.MustParseAddr(local), 0, load) })
		}
	}
}

// load is what a burst consists of: frames of so many flows at random, of a payload of 60 bytes and up to spread-1 more.
type load struct{ flows, spread int }

var oneFlow = load{flows: 1, spread: 1}

func benchmarkLoopback(b *testing.B, addr netip.Addr, tos uint8, l load) {
	const bursts = 16
	n := &node{ns: nstest.New(b), addr: addr, peers: &VTEPTable{}}
	must(b, n.peers.Set([]Peer{{Name: "self", Underlay: addr}}))
	n.open(b, 1)
	out, in, q := newSender(n.tunnel, 0), newReceiver(n.tunnel), n.tunnel.Rx()[0]
	inner, _ := udpFrame(5000, make([]byte, 59+l.spread), 0)
	ip := wire.IPv4(inner[wire.EthernetLen:])
	ip.SetTOS(tos)
	ip.UpdateChecksum()
	r := seed.Rand(b)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var sending, receiving time.Duration
	datagrams := 0
	for b.Loop() {
		start := threadTime(b)
		for range bursts {
			for range frame.BurstSize {
				f := out.add(b, inner[:len(inner)-r.IntN(l.spread)])
				f.Hash = r.Uint32N(uint32(l.flows))
			}
			out.q.Send(&out.b)
			out.b.Release()
		}
		sent := threadTime(b)
		for more := true; more; {
			var burst frame.Burst
			more = q.Recv(0, &burst, in.pool, &in.st)
			datagrams += burst.Len()
			burst.Release()
		}
		sending += sent - start
		receiving += threadTime(b) - sent
	}
	b.ReportMetric(float64(sending.Nanoseconds())/float64(datagrams), "send-ns/datagram")
	b.ReportMetric(float64(receiving.Nanoseconds())/float64(datagrams), "recv-ns/datagram")
}

// threadTime is what the calling thread has used of a processor, whoever else does.
func threadTime(b *testing.B) time.Duration {
	var t unix.Timespec
	must(b, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t))
	return time.Duration(t.Nano())
}
