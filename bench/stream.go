package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// streamChunk is what one write or read of a stream moves: several of the largest super-frames (64 KiB),
// so that system calls don't matter.
const streamChunk = 256 << 10

// streamPatience ends a stream that has stalled; the longest retransmission timeout seen after a lost tail
// is a few seconds.
const streamPatience = 15 * time.Second

// streamSpec says where a stream goes, or is received.
type streamSpec struct {
	Netns string // path of the pod's namespace
	At    netip.AddrPort
	Time  time.Duration // how long the sender sends
}

// streamResult is one end's count.
type streamResult struct {
	Bytes uint64
	Took  time.Duration // from the first byte to the end of the stream
	CPU   time.Duration // that this end has used
}

// send is the job of a stream's sender.
func send(c *console, spec streamSpec) (streamResult, error) {
	if err := enterForGood(spec.Netns); err != nil {
		return streamResult{}, err
	}
	fd, err := streamSocket()
	if err != nil {
		return streamResult{}, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(spec.At)); err != nil {
		return streamResult{}, fmt.Errorf("connect to %s: %w", spec.At, err)
	}
	if err := errors.Join(c.ready(), c.wait()); err != nil {
		return streamResult{}, err
	}
	r, err := pour(fd, spec.Time)
	if err != nil {
		return streamResult{}, fmt.Errorf("send to %s after %d bytes: %w", spec.At, r.Bytes, err)
	}
	r.CPU, err = processCPU(os.Getpid())
	return r, err
}

// pour writes for the given time, ends the stream and waits until the receiver has ended its side too.
func pour(fd int, d time.Duration) (streamResult, error) {
	chunk := make([]byte, streamChunk)
	var r streamResult
	start := time.Now()
	for time.Since(start) < d {
		n, err := unix.Write(fd, chunk)
		if err != nil && err != unix.EINTR {
			return r, err
		}
		r.Bytes += uint64(max(n, 0))
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return r, err
	}
	_, err := unix.Read(fd, chunk)
	r.Took = time.Since(start)
	return r, err
}

// receive is the job of a stream's receiver: it ends with the stream.
func receive(c *console, spec streamSpec) (streamResult, error) {
	if err := enterForGood(spec.Netns); err != nil {
		return streamResult{}, err
	}
	listener, err := streamSocket()
	if err != nil {
		return streamResult{}, err
	}
	defer unix.Close(listener)
	err = errors.Join(
		unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(listener, sockaddr(spec.At)),
		unix.Listen(listener, 1),
	)
	if err != nil {
		return streamResult{}, fmt.Errorf("listen at %s: %w", spec.At, err)
	}
	if err := c.ready(); err != nil {
		return streamResult{}, err
	}
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return streamResult{}, fmt.Errorf("accept at %s: %w", spec.At, err)
	}
	defer unix.Close(fd)
	r, err := swallow(fd)
	if err != nil {
		return streamResult{}, fmt.Errorf("receive at %s after %d bytes: %w", spec.At, r.Bytes, err)
	}
	r.CPU, err = processCPU(os.Getpid())
	return r, err
}

// swallow reads to the stream's end.
func swallow(fd int) (streamResult, error) {
	chunk := make([]byte, streamChunk)
	var r streamResult
	var start time.Time
	for {
		n, err := unix.Read(fd, chunk)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return r, err
		case n == 0:
			r.Took = time.Since(start)
			return r, nil
		case r.Bytes == 0:
			start = time.Now()
		}
		r.Bytes += uint64(n)
	}
}

// streamSocket is an IPv4 TCP socket whose calls give up after streamPatience.
func streamSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a TCP socket: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(streamPatience))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout), // an accepted socket inherits them
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout),
	)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sockaddr(at netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
}
