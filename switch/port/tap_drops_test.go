package port

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// While nobody reads, the kernel's ring fills, and what it drops is all that is missing afterwards.
func TestKernelDrops(t *testing.T) { forEngines(t, testKernelDrops) }

func testKernelDrops(t *testing.T, newPod func(testing.TB, int) *pod) {
	p := newPod(t, 1)
	// MLD reports would be counted too. Without IPv6 nobody but this test sends.
	p.ns.Do(t, func() { check(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0)) })
	for b := p.recv(t, 0); b.Len() > 0; b = p.recv(t, 0) { // what set-up has sent
		b.Release()
	}
	before := kernelDrops(t, p.tap)
	const sent = 3000 // the ring has txqueuelen places, 500 to 1,000
	conn := p.listen(t, podIPv4(1), 0)
	for range sent {
		_, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(podIPv4(2), 7))
		check(t, err)
	}
	received := 0
	for b := p.recv(t, 0); b.Len() > 0; b = p.recv(t, 0) {
		received += b.Len()
		b.Release()
	}
	dropped := kernelDrops(t, p.tap) - before
	if dropped == 0 || received+int(dropped) != sent {
		t.Errorf("%d sent, %d received, %d dropped by the kernel", sent, received, dropped)
	}
}

func kernelDrops(t *testing.T, tap *TAP) uint64 {
	t.Helper()
	n, err := tap.KernelDrops()
	check(t, err)
	return n
}

// The counter of a device that stayed in the agent's namespace is found as well, and that of one that is gone is not there.
func TestKernelDropsFindsTheNamespace(t *testing.T) {
	check(t, CreateTAP("tmp0"))
	tap, err := OpenTAP(TAPConfig{Device: "tmp0", PortName: "tapyard0"})
	check(t, err)
	defer tap.Close()
	kernelDrops(t, tap)
	link, err := netlink.LinkByName("tmp0")
	check(t, err)
	check(t, netlink.LinkDel(link))
	if _, err := tap.KernelDrops(); !errors.Is(err, unix.EBADFD) || !strings.Contains(err.Error(), "tapyard0") {
		t.Errorf("of a device that is gone: %v", err)
	}
}
