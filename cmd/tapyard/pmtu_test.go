package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The underlay carries 1,400 bytes here, so tunnels over IPv4 carry 1,350.
const thinUnderlay, thinTunnel = 1400, 1400 - 50

// thin builds a lab of two nodes whose underlay becomes thin while it runs.
func thin(t *testing.T, flags ...string) (c *cli, pods map[string][]netip.Addr) {
	c = build(t)
	c.must(append([]string{"lab", "up", "--nodes", "2", "--pods", "1"}, flags...)...)
	t.Cleanup(func() { _, _ = c.run("lab", "down") })
	for _, node := range []string{"n1", "n2"} {
		inPod(t, node, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(link, thinUnderlay)
		})
		eventually(t, node+" knows what its tunnels carry", func() bool {
			return strings.Contains(c.must("show", "routes", "--node", node, "-o", "json"), fmt.Sprintf(`"mtu": %d`, thinTunnel))
		})
	}
	pods = map[string][]netip.Addr{}
	for _, p := range c.status().Pods {
		pods[p.Name] = p.Addresses
	}
	return c, pods
}

// Pods may send more than tunnels carry, as when an operator has set the MTU or a path is thinner than its ends:
// TCP and UDP that mind path MTU discovery recover, from pods and from nodes.
func TestPathMTU(t *testing.T) {
	c, pods := thin(t, "--mtu", "1450")
	for _, way := range []struct{ from, to string }{{"n1p1", "n2p1"}, {"n2p1", "n1p1"}, {"n1", "n2p1"}} {
		for _, at := range pods[way.to] {
			forgetPaths(t, way.from)
			forgetPaths(t, way.to) // a host tells the size of segments that it has learned, in IPv6
			transfer(t, way.from, way.to, at)
			if mtu := pathMTU(t, way.from, at); mtu != thinTunnel {
				t.Errorf("TCP from %s to %s: path MTU %d, want %d: the transfer proved nothing", way.from, at, mtu, thinTunnel)
			}
			forgetPaths(t, way.from)
			echoWithDF(t, way.from, way.to, at)
		}
	}
	answers := map[string][]string{"n1p1": {"10.244.1.1", "fd00:10:244:1::1"}, "n1": {"10.244.1.2", "fd00:10:244:1::2"}}
	for from, routers := range answers {
		for i, at := range pods["n2p1"] {
			forgetPaths(t, from)
			mtu, router := tooBigFor(t, from, at)
			if mtu != thinTunnel || router.String() != routers[i] {
				t.Errorf("a packet of 1,450 bytes from %s to %s: MTU %d from %s, want %d from %s", from, at, mtu, router, thinTunnel, routers[i])
			}
		}
	}
	c.must("lab", "down")
}

// Without a setting, pods and host follow the underlay, while they run and those that come later.
func TestMTUFollowsTheUnderlay(t *testing.T) {
	c, pods := thin(t)
	for _, device := range []struct{ netns, name string }{{"n1p1", "eth0"}, {"n1", "tapyard0"}} {
		eventually(t, device.name+" of "+device.netns+" follows", func() (ok bool) {
			inPod(t, device.netns, func() error {
				link, err := netlink.LinkByName(device.name)
				ok = err == nil && link.Attrs().MTU == thinTunnel
				return err
			})
			return ok
		})
	}
	for _, at := range pods["n2p1"] {
		transfer(t, "n1p1", "n2p1", at)
	}
	c.must("lab", "down")
}

func forgetPaths(t *testing.T, netns string) {
	inPod(t, netns, func() error {
		for _, family := range []string{"-4", "-6"} {
			if out, err := exec.Command("ip", family, "route", "flush", "cache").CombinedOutput(); err != nil {
				return fmt.Errorf("ip route flush cache: %w: %s", err, out)
			}
		}
		return nil
	})
}

// pathMTU asks the kernel what it has learned about the path.
func pathMTU(t *testing.T, netns string, to netip.Addr) (mtu int) {
	inPod(t, netns, func() error {
		conn, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		return onFD(conn, func(fd int) (err error) {
			mtu, err = kernelMTU(fd, to)
			return err
		})
	})
	return mtu
}

func kernelMTU(fd int, to netip.Addr) (int, error) {
	if to.Is4() {
		return unix.GetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU)
	}
	return unix.GetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU)
}

func onFD(conn net.Conn, f func(fd int) error) error {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	return errors.Join(raw.Control(func(fd uintptr) { failed = f(int(fd)) }), failed)
}

// dontFragment sets DF and has the kernel mind what it learns about paths.
func dontFragment(fd int, to netip.Addr) error {
	if to.Is4() {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO),
			unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1))
	}
	return errors.Join(unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
		unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1))
}

// echoWithDF sends datagrams with DF as QUIC does: as large as the device takes, and after the error as large as
// the path takes. They come back whole, as hashes show.
func echoWithDF(t *testing.T, from, to string, at netip.Addr) {
	t.Helper()
	var server net.PacketConn
	inPod(t, to, func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	defer server.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, peer, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			sum := sha256.Sum256(buf[:n])
			_, _ = server.WriteTo(sum[:], peer)
		}
	}()
	var conn net.Conn
	inPod(t, from, func() (err error) {
		if conn, err = net.Dial("udp", server.LocalAddr().String()); err != nil {
			return err
		}
		return onFD(conn, func(fd int) error { return dontFragment(fd, at) })
	})
	defer conn.Close()
	size, tooLong := 1450-headers(at), false
	payload := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(payload)
	answer := make([]byte, sha256.Size)
	for range 20 {
		_, err := conn.Write(payload[:size])
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			_, err = io.ReadFull(conn, answer)
		}
		want := sha256.Sum256(payload[:size])
		switch {
		case err == nil && !bytes.Equal(answer, want[:]):
			t.Fatalf("%s to %s: a datagram of %d bytes arrived changed", from, at, size)
		case err == nil && tooLong:
			return
		case errors.Is(err, unix.EMSGSIZE):
			tooLong = true
			size = pathMTU(t, from, at) - headers(at)
		}
	}
	t.Errorf("%s to %s: UDP with DF did not recover: too long %v, last size %d", from, at, tooLong, size)
}

func headers(a netip.Addr) int {
	if a.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// tooBigFor sends a packet of 1,450 bytes with DF and returns the MTU that the ICMP error tells, and who sent it.
func tooBigFor(t *testing.T, from string, to netip.Addr) (mtu int, router netip.Addr) {
	t.Helper()
	var conn net.Conn
	inPod(t, from, func() (err error) {
		if conn, err = net.Dial("udp", netip.AddrPortFrom(to, 9).String()); err != nil {
			return err
		}
		return onFD(conn, func(fd int) error { return dontFragment(fd, to) })
	})
	defer conn.Close()
	if _, err := conn.Write(make([]byte, 1450-headers(to))); err != nil {
		t.Fatal(err)
	}
	oob, control := make([]byte, 512), []byte(nil)
	eventually(t, "an ICMP error", func() bool {
		_ = onFD(conn, func(fd int) error {
			_, n, _, _, err := unix.Recvmsg(fd, nil, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err == nil {
				control = oob[:n]
			}
			return nil
		})
		return control != nil
	})
	e := extendedError(t, control, to.Is4())
	if e.errno != unix.EMSGSIZE {
		t.Errorf("%s to %s: error %v", from, to, e.errno)
	}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		t.Fatal(err)
	}
	return int(binary.NativeEndian.Uint32(messages[0].Data[8:])), e.from // ee_info of struct sock_extended_err
}
