package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// probeSpec says how requests are sent.
type probeSpec struct {
	Netns    string // path of the pod's namespace
	From, To netip.AddrPort
	Every    time.Duration // between requests
	Run      uint64        // tells this run's requests from another's
	Time     time.Duration // how long requests are sent
}

// probeResult is the asker's side of the account.
type probeResult struct {
	Sent     uint64
	Foreign  uint64          // datagrams that answer no request of the run
	RTT      []time.Duration // of each answer, from the time that its request was due, ascending
	Dropped  uint64          // at the socket
	Ordinary bool            // no real-time priority was to be had
	CPU      time.Duration   // that the asker itself has used
}

// echoSpec says where requests arrive.
type echoSpec struct {
	Netns    string
	At, Peer netip.AddrPort
}

// echoResult is the answerer's side of the account.
type echoResult struct {
	Received, Answered uint64
	Dropped            uint64 // at the socket
	CPU                time.Duration
}

// requestLen makes a request a 64-byte frame.
const requestLen = minFrame - fcsLen - udpHead

// requester sends requests and takes answers on one thread, so that neither waits for the other's.
type requester struct {
	spec   probeSpec
	fd     int
	start  time.Time
	buf    [2048]byte
	result probeResult
}

// probe is the job of one that asks: request i is due at start + i·Every and its answer is measured from there, so
// that a stall is held against every request that it delayed (no coordinated omission).
func probe(c *console, spec probeSpec) (probeResult, error) {
	if err := enterForGood(spec.Netns); err != nil {
		return probeResult{}, err
	}
	fd, err := connectedSocket(spec.From, spec.To)
	if err != nil {
		return probeResult{}, err
	}
	defer unix.Close(fd)
	// The kernel adds 50 µs of slack to every sleep otherwise.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return probeResult{}, fmt.Errorf("PR_SET_TIMERSLACK: %w", err)
	}
	r := &requester{spec: spec, fd: fd}
	r.result.Ordinary = realTime() != nil
	if err := errors.Join(c.ready(), c.wait()); err != nil {
		return probeResult{}, err
	}
	if err := r.run(); err != nil {
		return probeResult{}, fmt.Errorf("request %d to %s: %w", r.result.Sent, spec.To, err)
	}
	slices.Sort(r.result.RTT)
	var errs [2]error
	r.result.Dropped, errs[0] = socketDrops(fd)
	r.result.CPU, errs[1] = processCPU(os.Getpid())
	return r.result, errors.Join(errs[:]...)
}

// run asks until the time is over, and listens for sinkQuiet longer.
func (r *requester) run() error {
	r.result.RTT = make([]time.Duration, 0, 1+r.spec.Time/r.spec.Every)
	var request [requestLen]byte
	binary.BigEndian.PutUint64(request[:], r.spec.Run)
	r.start = time.Now()
	for ; r.due(r.result.Sent) < r.spec.Time; r.result.Sent++ {
		if err := r.listenUntil(r.due(r.result.Sent)); err != nil {
			return err
		}
		binary.BigEndian.PutUint64(request[8:], r.result.Sent)
		if _, err := unix.Write(r.fd, request[:]); err != nil {
			return err
		}
	}
	return r.listenUntil(r.spec.Time + sinkQuiet)
}

// due is when a request is to be sent, after the start.
func (r *requester) due(number uint64) time.Duration { return time.Duration(number) * r.spec.Every }

// listenUntil takes answers until the time after the start.
func (r *requester) listenUntil(end time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
	for {
		left := end - time.Since(r.start)
		if left <= 0 {
			return nil
		}
		timeout := unix.NsecToTimespec(int64(left))
		n, err := unix.Ppoll(fds, &timeout, nil)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait: %w", err)
		}
		if n > 0 {
			if err := r.drain(); err != nil {
				return err
			}
		}
	}
}

// drain takes the answers that are there.
func (r *requester) drain() error {
	for {
		n, err := unix.Read(r.fd, r.buf[:])
		switch err {
		case nil:
			r.answer(r.buf[:n], time.Since(r.start))
		case unix.EAGAIN:
			return nil
		case unix.EINTR:
		default:
			return err
		}
	}
}

// answer notes an answer that came at a time after the start.
func (r *requester) answer(p []byte, at time.Duration) {
	if len(p) != requestLen || binary.BigEndian.Uint64(p) != r.spec.Run || binary.BigEndian.Uint64(p[8:]) > r.result.Sent {
		r.result.Foreign++
		return
	}
	r.result.RTT = append(r.result.RTT, at-r.due(binary.BigEndian.Uint64(p[8:])))
}

// echo is the job of one that answers: what comes goes back as it is.
func echo(c *console, spec echoSpec) (echoResult, error) {
	if err := enterForGood(spec.Netns); err != nil {
		return echoResult{}, err
	}
	fd, err := connectedSocket(spec.At, spec.Peer)
	if err != nil {
		return echoResult{}, err
	}
	defer unix.Close(fd)
	realTime() // where it is refused, the asker says so
	if err := c.ready(); err != nil {
		return echoResult{}, err
	}
	var ending atomic.Bool
	gone := make(chan error, 1)
	go func() {
		gone <- c.wait()
		ending.Store(true)
	}()
	var result echoResult
	if err := result.answerAll(fd, &ending); err != nil {
		return echoResult{}, fmt.Errorf("answer at %s: %w", spec.At, err)
	}
	var errs [2]error
	result.Dropped, errs[0] = socketDrops(fd)
	result.CPU, errs[1] = processCPU(os.Getpid())
	return result, errors.Join(append(errs[:], <-gone)...)
}

// answerAll answers until it was told to end and nothing has come for sinkQuiet.
func (e *echoResult) answerAll(fd int, ending *atomic.Bool) error {
	buf := make([]byte, 2048)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(sinkQuiet.Milliseconds()))
		switch {
		case err != nil && err != unix.EINTR:
			return err
		case n == 0 && err == nil && ending.Load():
			return nil
		case n <= 0:
			continue
		}
		n, err = unix.Read(fd, buf)
		switch err {
		case nil:
			e.Received++
		case unix.EAGAIN, unix.EINTR, unix.ECONNREFUSED: // refused: the asker has ended
			continue
		default:
			return err
		}
		if _, err := unix.Write(fd, buf[:n]); err == nil {
			e.Answered++
		} else if err != unix.ECONNREFUSED {
			return err
		}
	}
}

// connectedSocket is a non-blocking UDP socket between two addresses.
func connectedSocket(at, peer netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open a UDP socket: %w", err)
	}
	if err := errors.Join(unix.Bind(fd, sockaddr(at)), unix.Connect(fd, sockaddr(peer))); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("join %s to %s: %w", at, peer, err)
	}
	return fd, nil
}

// realTime gives the process precedence over whatever makes load on the same core, or the latency would be that of the
// core's scheduler. All its threads need the same: the one that measures may wait for the Go runtime's monitor, and
// yields to nobody beneath it, for half a second and more until the kernel throttles it (sched_rt_runtime_us).
func realTime() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, thread := range threads { // later ones inherit it
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			return err
		}
		err = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		if err != nil && err != unix.ESRCH { // it has just ended
			return err
		}
	}
	return nil
}
