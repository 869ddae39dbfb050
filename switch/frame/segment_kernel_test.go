package frame_test

import (
	"bytes"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// kernelCutter is a bridge between a TAP that takes super-frames and one whose reader can't: the kernel
// segments and completes checksums in between.
type kernelCutter struct {
	in  port.TxQueue
	st  *port.Stats
	out int
}

func newKernelCutter(t *testing.T) *kernelCutter {
	t.Helper()
	k := &kernelCutter{st: &port.Stats{}}
	nstest.New(t).Do(t, func() {
		must(t, port.CreateTAP("super"))
		tap, err := port.OpenTAP(port.TAPConfig{Device: "super", PortName: "super"})
		must(t, err)
		t.Cleanup(func() { must(t, tap.Remove()) })
		if tap.Caps() != port.CapsAll {
			t.Fatalf("this kernel's TAP has not all offloads (6.2 or later has): %b", tap.Caps())
		}
		k.in = tap.Tx(0, k.st)
		k.out = openPlainTAP(t, "plain")
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}
		must(t, netlink.LinkAdd(bridge))
		for _, name := range []string{"super", "plain"} {
			link, err := netlink.LinkByName(name)
			must(t, err)
			must(t, netlink.LinkSetTxQLen(link, 2000))
			must(t, netlink.LinkSetMaster(link, bridge))
			must(t, netlink.LinkSetUp(link))
		}
		must(t, netlink.LinkSetUp(bridge))
	})
	return k
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openPlainTAP makes a TAP without virtio headers, hence without offloads, and returns its queue.
func openPlainTAP(t *testing.T, name string) int {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	ifr, err := unix.NewIfreq(name)
	must(t, err)
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	return fd
}

// cut sends f in and returns the n frames that come out.
func (k *kernelCutter) cut(t *testing.T, f *frame.Frame, n int) [][]byte {
	t.Helper()
	var b frame.Burst
	b.Append(f)
	k.in.Send(&b)
	k.in.Flush()
	var got [][]byte
	buf := make([]byte, frame.MaxLen)
	for len(got) < n {
		p := []unix.PollFd{{Fd: int32(k.out), Events: unix.POLLIN}}
		ready, err := unix.Poll(p, 2000)
		if err == unix.EINTR {
			continue
		}
		if ready == 0 || err != nil {
			t.Fatalf("the kernel delivered %d of %d frames of %+v: %v", len(got), n, f.Meta, err)
		}
		n, err := unix.Read(k.out, buf)
		must(t, err)
		if wire.Ethernet(buf).Src() == srcMAC { // not the kernel's own
			got = append(got, bytes.Clone(buf[:n]))
		}
	}
	return got
}

// The kernel is the reference for what a super-frame stands for: every byte of every segment is the same.
func TestSegmentsAgainstKernel(t *testing.T) {
	r := seed.Rand(t)
	k := newKernelCutter(t)
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	p := frame.NewPool(1, frame.DefaultArena)
	for range rounds {
		for _, kind := range kinds {
			s := randomSizes(r, kind)
			// The kernel refuses to segment what is only one segment (tcp_gso_segment), so it makes two here.
			s.payload = max(s.payload, s.gso+1)
			f := s.build(t, r, p)
			compare(t, s, segments(t, f), k.cut(t, f, f.Wire()))
			f.Release()
		}
	}
}

func TestCompleteChecksumAgainstKernel(t *testing.T) {
	r := seed.Rand(t)
	k := newKernelCutter(t)
	p := frame.NewPool(1, frame.DefaultArena)
	for range 20 {
		for _, s := range kinds {
			s.payload = r.IntN(1300)
			f := s.build(t, r, p)
			want := k.cut(t, f, 1)
			if !frame.CompleteChecksum(f) {
				t.Fatalf("%v: refused", s)
			}
			compare(t, s, [][]byte{f.Bytes()}, want)
			f.Release()
		}
	}
}

func compare(t *testing.T, s spec, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%v: %d frames, the kernel makes %d", s, len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("%v: frame %d\n  ours %x\nkernel %x", s, i, got[i], want[i])
		}
	}
}
