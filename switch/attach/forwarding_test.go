package attach

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
)

func enableForwarding(t *testing.T, ns *nstest.NS, subnets []netip.Prefix) (log string, err error) {
	t.Helper()
	var b bytes.Buffer
	ns.Do(t, func() { err = EnableForwarding(subnets, slog.New(slog.NewTextHandler(&b, nil))) })
	return b.String(), err
}

func value(t *testing.T, ns *nstest.NS, key string) string {
	t.Helper()
	return strings.TrimSpace(output(t, ns, "", "sysctl", "-n", key))
}

// A node that has its default route from a router keeps it, and hears of the next one, when it becomes a
// router itself.
func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	router, node := nstest.New(t), nstest.New(t)
	ipBatch(t, node, "link add eth0 type veth peer name eth0 netns "+router.Name(), "link add static type veth peer name other",
		"link add tapyard0 type veth peer name peer", "link add listener type veth peer name speaker")
	sysctl(t, node, "net.ipv4.ip_forward=0", "net.ipv6.conf.static.accept_ra=0", "net.ipv6.conf.listener.forwarding=1")
	ipBatch(t, router, "link set eth0 up addrgenmode none", "addr add fe80::1/64 dev eth0 nodad", "addr add fe80::2/64 dev eth0 nodad")
	ipBatch(t, node, "link set eth0 up")
	advertise(t, router, node, "fe80::1")

	log, err := enableForwarding(t, node, dualStack)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":               "1",
		"net.ipv6.conf.all.forwarding":      "1",
		"net.ipv6.conf.eth0.accept_ra":      "2",
		"net.ipv6.conf.static.accept_ra":    "0", // did not listen before
		"net.ipv6.conf.listener.accept_ra":  "1", // nor did this one, being a router's
		"net.ipv6.conf.lo.accept_ra":        "1",
		"net.ipv6.conf.tapyard0.accept_ra":  "1", // pods advertise no routers
		"net.ipv6.conf.default.accept_ra":   "1",
		"net.ipv6.conf.tapyard0.forwarding": "1",
	} {
		if got := value(t, node, key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	for _, part := range []string{"key=net.ipv4.ip_forward from=0 to=1", "key=net.ipv6.conf.eth0.accept_ra from=1 to=2", "key=net.ipv6.conf.all.forwarding from=0 to=1"} {
		if !strings.Contains(log, part) {
			t.Errorf("log lacks %q:\n%s", part, log)
		}
	}
	if routes := output(t, node, "", "ip", "-6", "route", "show", "default"); !strings.Contains(routes, "fe80::1 ") {
		t.Errorf("the advertised default route is gone: %q", routes)
	}
	advertise(t, router, node, "fe80::2")

	if log, err := enableForwarding(t, node, dualStack); err != nil || log != "" {
		t.Errorf("a second time: %v, %q", err, log)
	}
}

// advertise sends router advertisements (RFC 4861 section 4.2: hop limit 64, no flags, lifetime 1,800 s)
// until the node has the default route.
func advertise(t *testing.T, router, node *nstest.NS, from string) {
	t.Helper()
	message := []byte{134, 0, 0, 0, 64, 0, 1800 >> 8, 1800 & 0xff, 0, 0, 0, 0, 0, 0, 0, 0} // the kernel sums it
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(output(t, node, "", "ip", "-6", "route", "show", "default"), from+" ") {
		if time.Now().After(deadline) {
			t.Fatalf("no default route via %s: the advertisement is not accepted", from)
		}
		router.Do(t, func() { sendAdvertisement(t, from, message) })
		time.Sleep(50 * time.Millisecond)
	}
}

func sendAdvertisement(t *testing.T, from string, message []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	sockaddr := func(a string) unix.Sockaddr {
		return &unix.SockaddrInet6{Addr: netip.MustParseAddr(a).As16(), ZoneId: uint32(eth0.Index)}
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_HOPS, 255), // or it is no neighbor's
		unix.Bind(fd, sockaddr(from)),
		unix.Sendto(fd, message, 0, sockaddr("ff02::1")))
	if err != nil {
		t.Fatal(err)
	}
}

func TestForwardingOfOneFamily(t *testing.T) {
	ns := nstest.New(t)
	sysctl(t, ns, "net.ipv4.ip_forward=0")
	if _, err := enableForwarding(t, ns, dualStack[:1]); err != nil {
		t.Fatal(err)
	}
	if v4, v6 := value(t, ns, "net.ipv4.ip_forward"), value(t, ns, "net.ipv6.conf.all.forwarding"); v4 != "1" || v6 != "0" {
		t.Errorf("with pods in IPv4, forwarding of IPv4 is %s and of IPv6 %s", v4, v6)
	}
	sysctl(t, ns, "net.ipv4.ip_forward=0")
	if _, err := enableForwarding(t, ns, dualStack[1:]); err != nil {
		t.Fatal(err)
	}
	if v4, v6 := value(t, ns, "net.ipv4.ip_forward"), value(t, ns, "net.ipv6.conf.all.forwarding"); v4 != "0" || v6 != "1" {
		t.Errorf("with pods in IPv6, forwarding of IPv4 is %s and of IPv6 %s", v4, v6)
	}
}

// A container usually has /proc/sys read-only.
func TestForwardingNamesTheWayOut(t *testing.T) {
	ns := nstest.New(t)
	sysctl(t, ns, "net.ipv4.ip_forward=0")
	mount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount(sysctlDir, sysctlDir, "", unix.MS_BIND|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	mount(0)
	defer func() {
		if err := unix.Unmount(sysctlDir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}()
	mount(unix.MS_REMOUNT | unix.MS_RDONLY)
	_, err := enableForwarding(t, ns, dualStack)
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_forward is 0 and has to be 1") || !strings.Contains(err.Error(), "sysctl -w net.ipv4.ip_forward=1") {
		t.Errorf("error %v", err)
	}
	if got, want := dotted(filepath.Join("net/ipv6/conf", "eth0.100", "accept_ra")), "net.ipv6.conf.eth0/100.accept_ra"; got != want {
		t.Errorf("sysctl %s, want %s", got, want)
	}
}
