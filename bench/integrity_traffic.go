package bench

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	integrityPort = 5007
	// integrityTries is how often a datagram is sent until its answer comes: UDP may lose it, but never change it.
	integrityTries = 6
	integrityWait  = 300 * time.Millisecond
)

// integritySizes are lengths of messages from 1 to 65,000 bytes: all small ones, those around the bounds of packets
// and of their multiples, and some of each magnitude.
func integritySizes() (sizes []int) {
	const limit = 65_000
	for n := 1; n <= 64; n++ {
		sizes = append(sizes, n)
	}
	for _, bound := range []int{128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, podMTU - 40, podMTU - 28, podMTU - 48, 1398, 1400} {
		for _, times := range []int{1, 2, 3, 7, 20, 44} {
			for d := -1; d <= 1; d++ {
				sizes = append(sizes, bound*times+d)
			}
		}
	}
	sizes = append(sizes, limit-1, limit)
	sizes = slices.DeleteFunc(sizes, func(n int) bool { return n > limit })
	slices.Sort(sizes)
	return slices.Compact(sizes)
}

// integrityPair is two pods between which bytes are compared.
type integrityPair struct{ from, to integrityEnd }

// integrityEnd is a pod with an address of one family.
type integrityEnd struct {
	netns string
	addr  netip.Addr
}

func (p *integrityPair) at() netip.AddrPort { return netip.AddrPortFrom(p.to.addr, integrityPort) }

// stream sends a message of each size by TCP, each in one write, and compares the streams' digests. It returns how
// many messages were compared.
func (p *integrityPair) stream(r *rand.ChaCha8, sizes []int) (n int, err error) {
	var listener *net.TCPListener
	if err := inNetns(p.to.netns, func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(p.at()))
		return err
	}); err != nil {
		return 0, err
	}
	defer listener.Close()
	var out net.Conn
	if err := inNetns(p.from.netns, func() (err error) {
		out, err = net.DialTimeout("tcp", p.at().String(), streamPatience)
		return err
	}); err != nil {
		return 0, err
	}
	defer out.Close()
	in, err := listener.Accept()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	deadline := time.Now().Add(streamPatience)
	if err := errors.Join(out.SetDeadline(deadline), in.SetDeadline(deadline)); err != nil {
		return 0, err
	}
	sent := make(chan error, 1)
	want, got := sha256.New(), sha256.New()
	go func() {
		for _, size := range sizes {
			b := make([]byte, size)
			_, _ = r.Read(b) // never fails
			want.Write(b)
			if _, err := out.Write(b); err != nil {
				sent <- err
				return
			}
		}
		sent <- out.(*net.TCPConn).CloseWrite()
	}()
	received, err := io.Copy(got, in)
	if err := errors.Join(err, <-sent); err != nil {
		return 0, fmt.Errorf("TCP to %v after %d bytes: %w", p.at(), received, err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return 0, fmt.Errorf("TCP to %v: %d bytes arrived changed", p.at(), received)
	}
	return len(sizes), nil
}

// datagrams sends a datagram of each size by UDP, those longer than the MTU in fragments, and trains of some of the
// sizes (UDP_SEGMENT). The other pod answers each with its digest.
func (p *integrityPair) datagrams(r *rand.ChaCha8, sizes []int) (n int, err error) {
	var in, out *net.UDPConn
	if err := inNetns(p.to.netns, func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.at()))
		return err
	}); err != nil {
		return 0, err
	}
	defer in.Close()
	if err := inNetns(p.from.netns, func() (err error) {
		out, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.from.addr, 0)), net.UDPAddrFromAddrPort(p.at()))
		return err
	}); err != nil {
		return 0, err
	}
	defer out.Close()
	go answerDigests(in)
	for _, size := range sizes {
		if err := exchangeDigests(out, r, size, size); err != nil {
			return n, fmt.Errorf("UDP to %v, %d bytes: %w", p.at(), size, err)
		}
		n++
	}
	for _, segment := range []int{1, 18, 100, 1000, podMTU - 48} { // the last is IPv6's longest
		if err := setSegment(out, segment); err != nil {
			return n, err
		}
		for _, segments := range []int{2, 3, 17, 40} {
			total := segments*segment - segment/2
			if err := exchangeDigests(out, r, total, segment); err != nil {
				return n, fmt.Errorf("UDP to %v, %d bytes in datagrams of %d: %w", p.at(), total, segment, err)
			}
			n += segments
		}
	}
	return n, nil
}

func setSegment(c *net.UDPConn, size int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	return errors.Join(err, set)
}

// answerDigests answers each datagram with its digest until the socket is closed.
func answerDigests(c *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		sum := sha256.Sum256(b[:n])
		if _, err := c.WriteToUDPAddrPort(sum[:], from); err != nil {
			return
		}
	}
}

// exchangeDigests sends n bytes in one call, as datagrams of size bytes, until all of their digests have come back. An
// answer with any other digest is an error, unless it is a late one.
func exchangeDigests(c *net.UDPConn, r *rand.ChaCha8, n, size int) error {
	b := make([]byte, n)
	_, _ = r.Read(b) // never fails
	missing := map[[sha256.Size]byte]int{}
	known := map[[sha256.Size]byte]bool{}
	for chunk := range slices.Chunk(b, size) {
		missing[sha256.Sum256(chunk)]++
		known[sha256.Sum256(chunk)] = true
	}
	for range integrityTries {
		if _, err := c.Write(b); err != nil {
			return err
		}
		var sum [sha256.Size]byte
		for len(missing) > 0 {
			if err := c.SetReadDeadline(time.Now().Add(integrityWait)); err != nil {
				return err
			}
			if _, err := c.Read(sum[:]); errors.Is(err, unix.EAGAIN) || isTimeout(err) {
				break
			} else if err != nil {
				return err
			}
			if !known[sum] {
				return fmt.Errorf("it arrived changed: digest %x", sum[:8])
			}
			if missing[sum]--; missing[sum] <= 0 {
				delete(missing, sum)
			}
		}
		if len(missing) == 0 {
			return nil
		}
	}
	return fmt.Errorf("%d of its datagrams didn't arrive in %d tries", len(missing), integrityTries)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
