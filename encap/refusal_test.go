package encap

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
)

// What keeps a datagram back is told with the peer, the size and the place to look.
func TestLastError(t *testing.T) {
	for family, overhead := range map[string]int{"IPv4": 50, "IPv6": 70} {
		for name, test := range map[string]struct {
			block  func(t *testing.T, a *node)
			reason drop.Reason
			errno  unix.Errno
			advice string
		}{
			"underlay's MTU": {func(t *testing.T, a *node) { a.setMTU(t, 1400) }, drop.TooBig, unix.EMSGSIZE,
				fmt.Sprintf("smaller than this datagram's %d bytes, outer IP header included ('ip route get %v' names the device): "+
					"the pods' MTU must be at most the underlay's less %d", 1430-14+overhead, families[family][1], overhead)},
			"firewall": {func(t *testing.T, a *node) {
				nft(t, a, "add table inet fw", "add chain inet fw out { type filter hook output priority 0; }",
					"add rule inet fw out udp dport 4789 drop")
			}, drop.TxError, unix.EPERM, "nft list ruleset"},
			"no route": {func(t *testing.T, a *node) { route(t, a, "flush", "dev", "under") }, drop.TxError, unix.ENETUNREACH,
				fmt.Sprintf("ip route get %v from %v", families[family][1], families[family][0])},
			"unreachable": {blocked("unreachable"), drop.TxError, unix.EHOSTUNREACH, "ip route get"},
			"prohibit":    {blocked("prohibit"), drop.TxError, unix.EACCES, "ip route get"},
			"blackhole":   {blocked("blackhole"), drop.TxError, unix.EINVAL, "ip route get"},
		} {
			t.Run(family+"/"+name, func(t *testing.T) {
				a, _ := newUnderlay(t, family)
				a.open(t, 1)
				test.block(t, a)
				out := newSender(a.tunnel, 0)
				out.add(t, make([]byte, 1430))
				out.send(t)
				requireCounts(t, &out.st, counted{}, map[drop.Reason]counted{test.reason: {1, 1}})
				err := a.tunnel.LastError()
				if !errors.Is(err, test.errno) || !strings.Contains(err.Error(), "peer b at "+families[family][1].String()) ||
					!strings.Contains(err.Error(), test.advice) {
					t.Errorf("LastError %v\nwant %v with %q", err, test.errno, test.advice)
				}
			})
		}
	}
}

// The size in LastError is exactly what the underlay would need: with it as MTU, the same frame goes.
func TestLastErrorSizeIsExact(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			a, b := newUnderlay(t, family)
			a.open(t, 1)
			b.open(t, 1)
			out := newSender(a.tunnel, 0)
			super, meta := udpFrame(5000, make([]byte, 6000), 1450)
			send := func() {
				out.add(t, super).Meta = meta
				out.send(t)
			}
			a.setMTU(t, 1400)
			send()
			_, after, _ := strings.Cut(a.tunnel.LastError().Error(), "this datagram's ")
			var size int
			if _, err := fmt.Sscan(after, &size); err != nil {
				t.Fatalf("%v in %v", err, a.tunnel.LastError())
			}
			b.setMTU(t, 9000)
			a.setMTU(t, size-1)
			send()
			a.setMTU(t, size)
			send()
			requireCounts(t, &out.st, counted{1, 5}, map[drop.Reason]counted{drop.TooBig: {2, 10}})
			newReceiver(b.tunnel).receive(t, 5)
		})
	}
}

func (n *node) setMTU(t *testing.T, mtu int) {
	t.Helper()
	n.ns.Do(t, func() {
		link, err := netlink.LinkByName("under")
		must(t, err)
		must(t, netlink.LinkSetMTU(link, mtu))
	})
}

// blocked puts a route of that type before the one to the peer.
func blocked(kind string) func(*testing.T, *node) {
	return func(t *testing.T, a *node) { route(t, a, "add", kind, a.far.addr.String()) }
}

func route(t *testing.T, n *node, args ...string) {
	t.Helper()
	family := "-4"
	if n.addr.Is6() {
		family = "-6"
	}
	if out, err := n.ns.Command("ip", append([]string{family, "route"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("ip route %v: %v: %s", args, err, out)
	}
}
