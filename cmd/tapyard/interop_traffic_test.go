package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
)

// trafficPatience is how long one answer, or one stream, may take; on an idle machine that is 10 ms.
const trafficPatience = 10 * time.Second

// way is a direction of traffic in one family.
type way struct {
	from, to place
	at       netip.Addr // of to
	mtu      int
	volume   int // of a TCP stream
	rand     *rand.Rand
}

// exchange sends traffic of every kind both ways in both families and compares what arrives. What fails first
// ends the test: the rest would wait as long. A TCP stream is volume bytes long, or up to twice that.
func exchange(t *testing.T, a, b place, mtu, volume int) {
	t.Helper()
	r := seed.Rand(t)
	for _, ends := range [][2]place{{a, b}, {b, a}} {
		for _, at := range ends[1].addrs {
			w := way{ends[0], ends[1], at, mtu, volume, r}
			for _, kind := range []struct {
				name string
				send func(*testing.T) error
			}{{"ping", w.ping}, {"udp", w.udp}, {"udp trains", w.udpTrains}, {"tcp", w.tcp}} {
				if err := kind.send(t); err != nil {
					t.Fatalf("%s to %s at %s: %s: %v", w.from.name, w.to.name, at, kind.name, err)
				}
			}
		}
	}
}

// within calls f inside the namespace; the sockets that it makes stay there.
func within(t *testing.T, ns *nstest.NS, f func() error) (err error) {
	t.Helper()
	ns.Do(t, func() { err = f() })
	return err
}

// headers is the length of an IP header and a UDP or ICMP one.
func (w way) headers() int {
	if w.at.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// sizes are payloads from nothing to the longest datagram: around the MTU, where the sender begins to make
// fragments, and at random.
func (w way) sizes() []int {
	whole := w.mtu - w.headers()
	sizes := []int{0, 1, 2, 17, 18, 19, whole - 1, whole, whole + 1, 2*whole + 3, 65535 - 40 - 8}
	for range 20 {
		sizes = append(sizes, w.rand.IntN(whole), w.rand.IntN(3*whole))
	}
	return sizes
}

func (w way) payload(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.rand.Uint32())
	}
	return p
}

// ping sends echo requests, small, whole and in fragments, and compares the replies' payload. The first one is
// repeated: a kernel takes a new IPv6 address into use some time after it was given, in a work queue.
func (w way) ping(t *testing.T) error {
	eventually(t, fmt.Sprintf("%s reaches %s at %s", w.from.name, w.to.name, w.at), func() bool {
		return w.echo(t, 0, 300*time.Millisecond) == nil
	})
	for _, size := range []int{57, w.mtu - w.headers(), 3*w.mtu + 1} {
		if err := w.echo(t, size, trafficPatience); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	return nil
}

// echo makes one exchange on a socket of its own, so that no late reply is taken for another.
func (w way) echo(t *testing.T, size int, patience time.Duration) error {
	var conn net.PacketConn
	err := within(t, w.from.ns, func() (err error) {
		conn, err = echoSocket(w.at.Is4())
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	request := append([]byte{128, 0, 0, 0, 0, 0, 0, 1}, w.payload(size)...) // type, code, checksum, id, sequence
	if w.at.Is4() {
		request[0] = 8
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.WriteTo(request, &net.UDPAddr{IP: w.at.AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 65536)
	n, _, err := conn.ReadFrom(buf)
	if err == nil && (n < 8 || !bytes.Equal(buf[6:n], request[6:])) {
		err = fmt.Errorf("another %d bytes came back", n-8)
	}
	return err
}

// echoSocket returns a socket for echo requests, whose identifier and checksum are the kernel's business
// (icmp(7), ping_group_range).
func echoSocket(v4 bool) (net.PacketConn, error) {
	family, proto := unix.AF_INET6, unix.IPPROTO_ICMPV6
	if v4 {
		family, proto = unix.AF_INET, unix.IPPROTO_ICMP
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "echo")
	defer file.Close()
	return net.FilePacketConn(file)
}

// udpPair returns a listening and a connected socket.
func (w way) udpPair(t *testing.T) (l, c *net.UDPConn, err error) {
	err = within(t, w.to.ns, func() (err error) {
		l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.at, 0)))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	err = within(t, w.from.ns, func() (err error) {
		c, err = net.DialUDP("udp", nil, l.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, c, errors.Join(l.SetDeadline(time.Now().Add(trafficPatience)), c.SetDeadline(time.Now().Add(trafficPatience)))
}

// udp sends datagrams one by one and compares them.
func (w way) udp(t *testing.T) error {
	l, c, err := w.udpPair(t)
	if err != nil {
		return err
	}
	defer l.Close()
	defer c.Close()
	for _, size := range w.sizes() {
		payload := w.payload(size)
		if _, err := c.Write(payload); err != nil {
			return fmt.Errorf("send %d bytes: %w", size, err)
		}
		if err := expectDatagram(l, payload); err != nil {
			return err
		}
	}
	return nil
}

func expectDatagram(l *net.UDPConn, want []byte) error {
	buf := make([]byte, 65536)
	n, err := l.Read(buf)
	if err != nil {
		return fmt.Errorf("wait for %d bytes: %w", len(want), err)
	}
	if sha256.Sum256(buf[:n]) != sha256.Sum256(want) {
		return fmt.Errorf("%d bytes arrived, want %d others", n, len(want))
	}
	return nil
}

// udpTrains hands the kernel several datagrams at once (udp(7), UDP_SEGMENT), which a TAP passes to the
// switch as one super-frame: with a shorter last one, and with all of one length.
func (w way) udpTrains(t *testing.T) error {
	l, c, err := w.udpPair(t)
	if err != nil {
		return err
	}
	defer l.Close()
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for _, train := range []struct{ segment, length int }{{1000, 5000}, {1201, 6100}, {w.mtu - w.headers(), 40001}, {333, 667}} {
		if e := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, train.segment)
		}); errors.Join(e, err) != nil {
			return errors.Join(e, err)
		}
		payload := w.payload(train.length)
		if _, err := c.Write(payload); err != nil {
			return fmt.Errorf("send %+v: %w", train, err)
		}
		for len(payload) > 0 {
			n := min(train.segment, len(payload))
			if err := expectDatagram(l, payload[:n]); err != nil {
				return fmt.Errorf("%+v: %w", train, err)
			}
			payload = payload[n:]
		}
	}
	return nil
}

// tcp sends a stream and compares the hash of what arrived.
func (w way) tcp(t *testing.T) error {
	payload := w.payload(w.volume + w.rand.IntN(w.volume))
	var l *net.TCPListener
	err := within(t, w.to.ns, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(w.at, 0)))
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() { sent <- w.tcpSend(t, l.Addr().String(), payload) }()
	_ = l.SetDeadline(time.Now().Add(trafficPatience))
	conn, err := l.Accept()
	if err != nil {
		return errors.Join(err, <-sent)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(trafficPatience))
	h := sha256.New()
	n, err := io.Copy(h, conn)
	conn.Close() // or a sender whose stream is stuck would wait for its deadline
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("%d of %d bytes arrived: %w", n, len(payload), err)
	}
	if [sha256.Size]byte(h.Sum(nil)) != sha256.Sum256(payload) {
		return fmt.Errorf("another %d bytes arrived, want %d", n, len(payload))
	}
	return nil
}

func (w way) tcpSend(t *testing.T, at string, payload []byte) error {
	var conn net.Conn
	err := within(t, w.from.ns, func() (err error) {
		conn, err = net.DialTimeout("tcp", at, trafficPatience)
		return err
	})
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(trafficPatience))
	_, err = conn.Write(payload)
	return errors.Join(err, conn.Close())
}
