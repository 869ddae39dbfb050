package encap

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
)

// dup is what a service manager does with descriptors.
func dup(t *testing.T, fds []int) (dups []int) {
	for _, fd := range fds {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		dups = append(dups, d)
	}
	return dups
}

// What arrives while nobody reads is the next Tunnel's, whether it has as many workers or not: its sockets are the same.
func TestSocketsChangeHands(t *testing.T) {
	for _, workers := range [][2]int{{1, 1}, {1, 3}, {3, 1}, {2, 2}} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			a, b := newUnderlay(t, "IPv4")
			a.open(t, workers[0])
			b.open(t, 1)
			kept := dup(t, a.tunnel.FDs())
			if len(kept) != workers[0] {
				t.Fatalf("%d descriptors of %d workers", len(kept), workers[0])
			}
			out := newSender(b.tunnel, 0)
			const n = 2 * frame.BurstSize
			send := func(first int) {
				for i := range n {
					out.add(t, fmt.Appendf(nil, "frame %d", first+i)).Hash = uint32(i)
					if out.b.Full() {
						out.send(t)
					}
				}
			}
			send(0)
			must(t, a.tunnel.Close())
			send(n)
			var next *Tunnel
			a.ns.Do(t, func() {
				var err error
				next, err = Open(Config{Name: "vxlan0", Local: a.addr, Workers: workers[1], Peers: a.peers, Plain: true, Inherited: kept})
				must(t, err)
			})
			a.tunnel = next
			t.Cleanup(func() { must(t, next.Close()) })
			if want := max(workers[0], workers[1]); len(next.Rx()) != want {
				t.Errorf("%d queues, want %d", len(next.Rx()), want)
			}
			send(2 * n)
			seen := map[string]bool{}
			for _, f := range newReceiver(next).receive(t, 3*n) {
				seen[string(f.bytes)] = true
			}
			if len(seen) != 3*n {
				t.Errorf("%d different frames, want %d", len(seen), 3*n)
			}
		})
	}
}

func TestSocketOfAnotherAddressIsRefused(t *testing.T) {
	other := openTunnel(t, netip.MustParseAddr("127.0.0.2"), 1, &VTEPTable{})
	kept := dup(t, other.FDs())
	defer unix.Close(kept[0])
	before := descriptors(t)
	_, err := Open(Config{Name: "vxlan0", Local: netip.MustParseAddr("127.0.0.1"), Workers: 1, Peers: &VTEPTable{}, Inherited: kept})
	if err == nil || !strings.Contains(err.Error(), "bound to 127.0.0.2:4789, want 127.0.0.1:4789") {
		t.Errorf("error %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// A queue that is drained delivers what it has taken, in whole messages, and leaves the rest to its successor.
func TestDrainLeavesTheRest(t *testing.T) {
	tunnel, peers, _ := loopbackTunnel(t)
	must(t, peers.Set([]Peer{{Name: "self", Underlay: tunnel.cfg.Local}}))
	out := newSender(tunnel, 0)
	const n = 4 * rxSlots
	for i := range n {
		out.add(t, fmt.Appendf(nil, "frame %d", i))
		out.send(t) // a message each
	}
	q := tunnel.Rx()[0].(port.Drainer)
	var st port.Stats
	small, big := frame.NewPool(3, frame.DefaultArena), frame.NewPool(frame.BurstSize, frame.DefaultArena)
	var b frame.Burst
	if !q.Recv(0, &b, small, &st) || b.Len() != 3 {
		t.Fatalf("%d frames of a pool of 3", b.Len())
	}
	b.Release()
	got := 3
	for q.Drain() {
		b = frame.Burst{}
		q.Recv(0, &b, big, &st)
		got += b.Len()
		b.Release()
	}
	if got != rxSlots {
		t.Errorf("%d frames, want those of one call, %d", got, rxSlots)
	}
	var left int
	b = frame.Burst{}
	for rest := newRxQueue(q.FD(), peers); rest.Recv(0, &b, big, &st); {
		left += b.Len()
		b.Release()
		b = frame.Burst{}
	}
	if left += b.Len(); left+got != n {
		t.Errorf("%d frames in the socket, want %d", left, n-got)
	}
	b.Release()
	requireDrops(t, &st, map[drop.Reason]counted{})
}
