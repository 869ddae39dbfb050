// Package porttest has an in-memory port.Port for tests: the test injects frames at its outer end, which the
// switch receives, and reads there what the switch sent. Its descriptor is an eventfd, so that workers wait for
// it in epoll as for any device, and it counts as a TAP does. It holds the switch to the contract of port.TxQueue:
// frames are read at Flush, when the bytes of one that was released or overwritten too early are wrong, and
// a frame that the port's capabilities exclude is a panic.
package porttest

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
)

// Frame is a frame outside of any pool.
type Frame struct {
	Bytes []byte // from the Ethernet header on
	Meta  frame.Meta
}

// Port is an in-memory port with one receive queue. All methods may be called from any goroutine; the queues
// belong to one worker each.
type Port struct {
	name string
	caps port.Caps
	fd   int
	rx   [1]port.RxQueue

	mu      sync.Mutex
	waiting []Frame // injected, not yet received; fd is readable while there are any
	sent    []Frame
	arrived chan struct{} // closed and replaced when sent grows
	refuse  drop.Reason
	closed  bool
}

var _ port.Port = (*Port)(nil)

// New returns a port that takes what caps says. It panics when the process is out of descriptors.
func New(name string, caps port.Caps) *Port {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		panic(fmt.Sprintf("porttest: port %s: eventfd: %v", name, err))
	}
	p := &Port{name: name, caps: caps, fd: fd, arrived: make(chan struct{})}
	p.rx[0] = (*rxQueue)(p)
	return p
}

// Name implements port.Port.
func (p *Port) Name() string { return p.name }

// Kind implements port.Port.
func (p *Port) Kind() string { return "memory" }

// Caps implements port.Port.
func (p *Port) Caps() port.Caps { return p.caps }

// Rx implements port.Port.
func (p *Port) Rx() []port.RxQueue { return p.rx[:] }

// Tx implements port.Port.
func (p *Port) Tx(_ int, st *port.Stats) port.TxQueue { return &txQueue{port: p, st: st} }

// Close implements port.Port. What was sent can still be read.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("close port %s: closed already", p.name)
	}
	p.closed = true
	return unix.Close(p.fd)
}

// Inject puts frames, copied, behind those that wait to be received. Meta.In is for the switch to set. A frame
// has at most frame.MaxLen bytes; what is injected after Close is lost.
func (p *Port) Inject(frames ...Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	for _, f := range frames {
		if len(f.Bytes) > frame.MaxLen {
			panic(fmt.Sprintf("porttest: port %s: inject %d bytes, more than frame.MaxLen, %d", p.name, len(f.Bytes), frame.MaxLen))
		}
		p.waiting = append(p.waiting, Frame{append([]byte(nil), f.Bytes...), f.Meta})
	}
	p.signal()
}

// Waiting returns the number of injected frames that the switch has not received yet.
func (p *Port) Waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waiting)
}

// signal makes the descriptor readable if and only if frames wait. An eventfd is readable while its counter is
// not 0; a read sets it to 0.
func (p *Port) signal() {
	counter := []byte{1, 0, 0, 0, 0, 0, 0, 0} // 1, or 1<<56 on a big-endian machine
	// EAGAIN, the only error that an open eventfd has, means that it is unreadable already.
	_, _ = unix.Read(p.fd, make([]byte, 8))
	if len(p.waiting) > 0 {
		_, _ = unix.Write(p.fd, counter)
	}
}

// Sent returns what the switch has sent so far, in order, in copies.
func (p *Port) Sent() []Frame {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.copySent()
}

func (p *Port) copySent() []Frame {
	list := make([]Frame, len(p.sent))
	for i, f := range p.sent {
		list[i] = Frame{append([]byte(nil), f.Bytes...), f.Meta}
	}
	return list
}

// Reset forgets what was sent.
func (p *Port) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = nil
}

// WaitSent waits until the switch has sent at least n frames, and returns all of them as Sent does. After the
// timeout it returns those that there are, and an error.
func (p *Port) WaitSent(n int, timeout time.Duration) ([]Frame, error) {
	deadline := time.After(timeout)
	for {
		p.mu.Lock()
		sent, arrived := p.copySent(), p.arrived
		p.mu.Unlock()
		if len(sent) >= n {
			return sent, nil
		}
		select {
		case <-arrived:
		case <-deadline:
			return sent, fmt.Errorf("port %s: %d frames sent after %v, want %d", p.name, len(sent), timeout, n)
		}
	}
}

// Refuse makes the port drop all frames that it is to send, for the reason, as a full or vanished device does;
// drop.None ends that.
func (p *Port) Refuse(r drop.Reason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = r
}

// rxQueue is the port's only receive queue.
type rxQueue Port

// FD implements port.RxQueue.
func (q *rxQueue) FD() int { return q.fd }

// Recv implements port.RxQueue.
func (q *rxQueue) Recv(_ int, b *frame.Burst, pool *frame.Pool, _ *port.Stats) (more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	taken := 0
	for _, f := range q.waiting {
		if b.Full() {
			break
		}
		buf := pool.Reserve(0, len(f.Bytes))
		if buf == nil {
			break
		}
		copy(buf, f.Bytes)
		out := pool.Commit(len(f.Bytes))
		out.Meta = f.Meta
		b.Append(out)
		taken++
	}
	q.waiting = q.waiting[taken:]
	(*Port)(q).signal()
	return len(q.waiting) > 0
}

// txQueue sends on the port for one worker.
type txQueue struct {
	port    *Port
	st      *port.Stats
	pending []*frame.Frame // sent, not yet flushed
}

// Send implements port.TxQueue.
func (q *txQueue) Send(b *frame.Burst) {
	for _, f := range b.Frames() {
		if !q.port.caps.Takes(&f.Meta) {
			panic(fmt.Sprintf("porttest: port %s has capabilities %05b and was sent a frame with %+v", q.port.name, q.port.caps, f.Meta))
		}
		q.pending = append(q.pending, f)
	}
}

// Flush implements port.TxQueue.
func (q *txQueue) Flush() {
	p := q.port
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range q.pending {
		q.sendOne(f)
	}
	q.pending = q.pending[:0]
	close(p.arrived)
	p.arrived = make(chan struct{})
}

func (q *txQueue) sendOne(f *frame.Frame) {
	switch p := q.port; {
	case p.closed:
		q.st.Drop(drop.PortGone, f.Wire(), f.Bytes(), &f.Meta)
	case p.refuse != drop.None:
		q.st.Drop(p.refuse, f.Wire(), f.Bytes(), &f.Meta)
	default:
		p.sent = append(p.sent, Frame{append([]byte(nil), f.Bytes()...), f.Meta})
		q.st.Tx.Add(1, uint64(f.Wire()))
		q.st.TxBytes.Add(uint64(f.Len()))
	}
}
