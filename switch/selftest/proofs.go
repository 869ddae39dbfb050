package selftest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/wire"
)

const (
	// streamLen is four super-frames and some.
	streamLen = 300_000
	// A train is what fits a super-frame of UDP: a burst's worth of equal datagrams and a shorter one.
	trainSize, trainLen = 1000, 20*1000 + 333
)

// payload is bytes of which no two parts are alike.
func payload(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(b) // never fails
	return b
}

// datagrams sends a UDP datagram from the first end to the second one.
func (t *topology) datagrams(f family, how treatment) error {
	want := payload(1000)
	got, err := t.exchange(f, how, 0, want)
	switch {
	case err != nil:
		return err
	case len(got) != 1 || !bytes.Equal(got[0], want):
		return fmt.Errorf("a datagram of %d bytes over %v arrived changed", len(want), f)
	case !t.seen.partial:
		return errors.New("the device completed the checksum itself: it doesn't use the offload")
	}
	return nil
}

// train sends datagrams in one call.
func (t *topology) train(f family, how treatment) error {
	want := payload(trainLen)
	got, err := t.exchange(f, how, trainSize, want)
	if err != nil {
		return err
	}
	for i, b := range got {
		if at := i * trainSize; !bytes.Equal(b, want[at:min(at+trainSize, len(want))]) {
			return fmt.Errorf("datagram %d of a train over %v arrived changed, with %d bytes", i+1, f, len(b))
		}
	}
	if n := (trainLen + trainSize - 1) / trainSize; len(got) != n {
		return fmt.Errorf("%d of %d datagrams of a train over %v arrived", len(got), n, f)
	}
	return t.saw(wire.GSOUDPL4, how)
}

// saw says that the proof has met what it is about.
func (t *topology) saw(gso uint8, how treatment) error {
	switch {
	case !t.seen.supers[gso]:
		return errors.New("the device cut super-frames itself: it doesn't use the offload")
	case how == merged && !t.seen.merged:
		return errors.New("nothing could be merged of what had been cut")
	}
	return nil
}

// exchange sends b by one call, as datagrams of size if that isn't 0, and returns what arrives.
func (t *topology) exchange(f family, how treatment, size int, b []byte) (got [][]byte, err error) {
	t.seen = seen{}
	fds, err := t.sockets(f, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	defer closeAll(fds[:]...)
	out, in := fds[0], fds[1]
	if size != 0 {
		if err := unix.SetsockoptInt(out, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size); err != nil {
			return nil, fmt.Errorf("set UDP_SEGMENT: %w", err)
		}
	}
	if err := unix.Sendto(out, b, 0, t.address(f)); err != nil {
		return nil, fmt.Errorf("send %d bytes of UDP over %v: %w", len(b), f, err)
	}
	have, buf := 0, make([]byte, 1<<16)
	for start := time.Now(); have < len(b); {
		t.relay(how)
		n, _, err := unix.Recvfrom(in, buf, 0)
		switch {
		case err == nil:
			got = append(got, bytes.Clone(buf[:n]))
			have += n
		case err != unix.EAGAIN && err != unix.EINTR:
			return nil, fmt.Errorf("receive UDP over %v: %w", f, err)
		case time.Since(start) > patience:
			return nil, fmt.Errorf("%d of %d bytes of UDP over %v arrived", have, len(b), f)
		}
	}
	return got, nil
}

// address is that of the second end's socket.
func (t *topology) address(f family) unix.Sockaddr {
	ip := t.ends[1].addrs[f]
	if f == ipv4 {
		return &unix.SockaddrInet4{Port: t.number, Addr: [4]byte(ip)}
	}
	return &unix.SockaddrInet6{Port: t.number, Addr: [16]byte(ip)}
}

// sockets returns a socket at each end; the second one is bound to a port that none was before.
func (t *topology) sockets(f family, kind int) (fds [2]int, err error) {
	fds = [2]int{-1, -1}
	t.number++
	for i, e := range t.ends {
		err = e.enter(func() (err error) {
			if fds[i], err = unix.Socket(int(f), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil || i == 0 {
				return err
			}
			return unix.Bind(fds[i], t.address(f))
		})
		if err != nil {
			closeAll(fds[:]...)
			return fds, fmt.Errorf("open a socket for %v: %w", f, err)
		}
	}
	return fds, nil
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// stream sends a TCP stream from the first end to the second one.
func (t *topology) stream(f family, how treatment) error {
	t.seen = seen{}
	fds, err := t.sockets(f, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer closeAll(fds[:]...)
	s := &stream{t: t, how: how, out: fds[0], in: -1, listener: fds[1], deadline: time.Now().Add(patience)}
	defer func() { closeAll(s.in) }()
	if err := s.connect(f); err != nil {
		return fmt.Errorf("connect over %v: %w", f, err)
	}
	want := payload(streamLen)
	got, err := s.transfer(want)
	if err != nil {
		return fmt.Errorf("a stream over %v: %w", f, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("a stream of %d bytes over %v arrived changed", len(want), f)
	}
	if f == ipv4 {
		return t.saw(wire.GSOTCPv4, how)
	}
	return t.saw(wire.GSOTCPv6, how)
}

// stream is a TCP connection between the two ends.
type stream struct {
	t                 *topology
	how               treatment
	out, in, listener int
	deadline          time.Time
}

func (s *stream) connect(f family) error {
	if err := unix.Listen(s.listener, 1); err != nil {
		return err
	}
	if err := unix.Connect(s.out, s.t.address(f)); err != nil && err != unix.EINPROGRESS {
		return err
	}
	for time.Now().Before(s.deadline) {
		s.t.relay(s.how)
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != unix.EAGAIN && err != unix.EINTR {
			s.in = fd
			return err
		}
	}
	return errors.New("nobody answered")
}

// transfer sends b and returns what arrives, as many bytes.
func (s *stream) transfer(b []byte) (got []byte, err error) {
	buf := make([]byte, 1<<16)
	for rest := b; len(got) < len(b); {
		n, err := unix.Write(s.out, rest)
		if rest = rest[max(n, 0):]; err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return nil, fmt.Errorf("write: %w", err)
		}
		s.t.relay(s.how)
		n, err = unix.Read(s.in, buf)
		got = append(got, buf[:max(n, 0)]...)
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return nil, fmt.Errorf("read: %w", err)
		}
		if time.Now().After(s.deadline) {
			return nil, fmt.Errorf("%d of %d bytes arrived within %v", len(got), len(b), patience)
		}
	}
	return got, nil
}
