package encap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
)

// Whoever starts a second switch, or has a vxlan device, reads who is in the way.
func TestPortTaken(t *testing.T) {
	local, local6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	us := fmt.Sprintf("encap.test (pid %d)", os.Getpid())
	for name, test := range map[string]struct {
		local netip.Addr
		take  func()
		want  string
	}{
		"same address":          {local, func() { takePort(t, &unix.SockaddrInet4{Addr: local.As4(), Port: DefaultPort}, 0) }, us},
		"same address, IPv6":    {local6, func() { takePort(t, &unix.SockaddrInet6{Addr: local6.As16(), Port: DefaultPort}, 0) }, us},
		"shared":                {local, func() { takePort(t, &unix.SockaddrInet4{Addr: local.As4(), Port: DefaultPort}, 1) }, us},
		"shared, IPv6":          {local6, func() { takePort(t, &unix.SockaddrInet6{Addr: local6.As16(), Port: DefaultPort}, 1) }, us},
		"all IPv4":              {local, func() { takePort(t, &unix.SockaddrInet4{Port: DefaultPort}, 0) }, us},
		"all":                   {local, func() { takePort(t, &unix.SockaddrInet6{Port: DefaultPort}, 0) }, us},
		"all, IPv6":             {local6, func() { takePort(t, &unix.SockaddrInet6{Port: DefaultPort}, 0) }, us},
		"another Tunnel":        {local, func() { openTunnel(t, local, 1, &VTEPTable{}) }, us},
		"another, many workers": {local, func() { openTunnel(t, local, 4, &VTEPTable{}) }, us},
		"another of both, IPv6": {local6, func() { openTunnel(t, local6, 4, &VTEPTable{}) }, us},
		"kernel":                {local, func() { vxlanDevice(t, nil) }, "the kernel (a vxlan device?"},
		"kernel, IPv6":          {local6, func() { vxlanDevice(t, local6.AsSlice()) }, "the kernel (a vxlan device?"},
	} {
		nstest.New(t).Do(t, func() {
			test.take()
			before := descriptors(t)
			_, err := Open(Config{Name: "vxlan0", Local: test.local, Workers: 2, Peers: &VTEPTable{}})
			if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: error %q, want one with %q", name, err, test.want)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%s: %d descriptors before, %d after a failed Open", name, before, after)
			}
		})
	}
}

// vxlanDevice makes the kernel listen, at all IPv4 addresses or at one IPv6 address.
func vxlanDevice(t *testing.T, local net.IP) {
	t.Helper()
	vx := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx"}, VxlanId: 1, Port: DefaultPort, SrcAddr: local}
	must(t, netlink.LinkAdd(vx))
	must(t, netlink.LinkSetUp(vx))
}

func takePort(t *testing.T, sa unix.Sockaddr, share int) {
	t.Helper()
	family := unix.AF_INET
	if _, v6 := sa.(*unix.SockaddrInet6); v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, share))
	must(t, unix.Bind(fd, sa))
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		local string
		want  string
	}{
		{"203.0.113.9", "hasn't that address"},
		{"0.0.0.0", "not one node's"},
		{"ff02::1", "not one node's"},
		{"fe80::1", "one link only"},
		{"255.255.255.255", "not one node's"},
	} {
		before := descriptors(t)
		_, err := Open(Config{Name: "vxlan0", Local: netip.MustParseAddr(test.local), Workers: 1, Peers: &VTEPTable{}})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", test.local, err, test.want)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%s: %d descriptors before, %d after a failed Open", test.local, before, after)
		}
	}
}

// Source ports that others have are left out.
func TestSourcePortsTaken(t *testing.T) {
	nstest.New(t).Do(t, func() {
		for _, p := range []int{firstSourcePort, firstSourcePort + 3} {
			takePort(t, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: p}, 0)
		}
		tunnel := openTunnel(t, netip.MustParseAddr("127.0.0.1"), 1, &VTEPTable{})
		seen := map[int]bool{firstSourcePort: true, firstSourcePort + 3: true}
		for _, q := range tunnel.tx {
			for _, fd := range q.source {
				sa, err := unix.Getsockname(fd)
				must(t, err)
				p := sa.(*unix.SockaddrInet4).Port
				if p < firstSourcePort || p > lastSourcePort || seen[p] {
					t.Errorf("source port %d", p)
				}
				seen[p] = true
			}
		}
		if len(seen) != 2+2*lanes {
			t.Errorf("%d source ports of one worker and the slow one", len(seen)-2)
		}
	})
}
