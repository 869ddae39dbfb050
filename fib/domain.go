package fib

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// waitPoll is how often Wait looks again. Readers pass quiescent points without telling anybody, and a
// worker under load passes one per burst (tens of microseconds), so one look usually suffices.
const waitPoll = time.Millisecond

// Domain is an epoch domain: quiescent-state-based reclamation for everything that one set of readers can
// reach (routes, adjacencies, descriptors of detached ports). A writer first makes an object unreachable for
// new lookups, then hands its release to Retire; the release runs when no reader can still hold the object.
//
// The zero value is an empty domain, ready to use. All methods may be called from any goroutine at any time.
// A Domain must not be copied.
type Domain struct {
	epoch atomic.Uint64 // number of the latest Retire; at least 1 once a reader exists, since 0 means offline

	mu      sync.Mutex
	readers []*Reader
	queue   []retired // ordered by epoch
	pending int       // callbacks retired and not yet returned, those being run included
	running bool      // one goroutine runs callbacks, in order, without mu
}

// retired is a callback that may run once every online reader has seen epoch or a later one.
type retired struct {
	epoch uint64
	f     func()
}

// Reader is one goroutine's membership in a Domain. Between Online and Offline it may hold references to
// objects of the domain; each Quiesce declares that it holds none from before. Only the goroutine that owns
// the Reader may call its methods.
type Reader struct {
	seen   atomic.Uint64 // the domain's epoch at the last quiescent point; 0 while offline
	domain *Domain
	_      [112]byte // 128 bytes in all: a line pair of its own, since it is written once per burst
}

// Register adds a reader, which starts offline. It belongs to the goroutine that will read; Close removes it.
func (d *Domain) Register() *Reader {
	r := &Reader{domain: d}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.epoch.CompareAndSwap(0, 1)
	d.readers = append(d.readers, r)
	return r
}

// Online starts a read-side section: from here on nothing the reader can reach is released. When the reader
// is online already, it is a quiescent point.
func (r *Reader) Online() { r.seen.Store(r.domain.epoch.Load()) }

// Quiesce declares that the reader has dropped every reference it got before this call: its quiescent point,
// one atomic load and one atomic store. It may be called only between Online and Offline (it would put an
// offline reader online).
func (r *Reader) Quiesce() { r.seen.Store(r.domain.epoch.Load()) }

// Offline ends the read-side section; the reader holds no reference and holds nothing up until it is online
// again. A worker goes offline around every wait. Calling it twice does no harm.
func (r *Reader) Offline() { r.seen.Store(0) }

// Close takes the reader offline and out of the domain. The Reader must not be used again, except that a
// second Close does nothing.
func (r *Reader) Close() {
	r.Offline()
	d := r.domain
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readers = slices.DeleteFunc(d.readers, func(x *Reader) bool { return x == r })
}

// Retire arranges for f to run exactly once, after every reader that is online now has passed a quiescent
// point or gone offline. The caller has already made what f releases unreachable for new lookups.
//
// f runs on the goroutine of this or a later Retire, Reclaim or Wait, at once if no reader is online and no
// callback is being run; never on a reader that makes no such call. Callbacks run one at a time in the order
// of their Retire calls, and without a lock of the domain. f must not panic, must not call Wait, and must not
// take a lock that any caller of Retire, Reclaim or Wait holds during the call.
func (d *Domain) Retire(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending++
	d.queue = append(d.queue, retired{epoch: d.epoch.Add(1), f: f})
	d.run()
}

// Reclaim runs what has become safe to run and returns how many callbacks have not returned yet, those that
// another goroutine is running just now included.
func (d *Domain) Reclaim() (pending int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.run()
	return d.pending
}

// Wait blocks until everything retired before the call has run, or until ctx ends; then the error wraps
// ctx.Err() and says how many readers are online. An online reader that calls Wait waits for itself.
func (d *Domain) Wait(ctx context.Context) error {
	done := make(chan struct{})
	d.Retire(func() { close(done) }) // callbacks run in order, so this one is the last
	tick := time.NewTicker(waitPoll)
	defer tick.Stop()
	for {
		d.Reclaim()
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return d.waitError(ctx)
		case <-tick.C:
		}
	}
}

// waitError says what a Wait that was given up had been waiting for.
func (d *Domain) waitError(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	online := 0
	for _, r := range d.readers {
		if r.seen.Load() != 0 {
			online++
		}
	}
	return fmt.Errorf("fib: wait for quiescence: %d callbacks pending, %d of %d readers online (a worker that is stuck in a burst?): %w",
		d.pending, online, len(d.readers), context.Cause(ctx))
}

// run runs every callback that is safe, with d.mu held on entry and return but not during the callbacks.
func (d *Domain) run() {
	if d.running { // that goroutine looks again before it stops
		return
	}
	d.running = true
	for safe := d.takeSafe(); len(safe) > 0; safe = d.takeSafe() {
		d.mu.Unlock()
		for i := range safe {
			safe[i].f()
			safe[i].f = nil // the queue's array may outlive the callback
		}
		d.mu.Lock()
		d.pending -= len(safe)
	}
	d.running = false
}

// takeSafe cuts the callbacks off the queue that no reader holds up. d.mu is held.
func (d *Domain) takeSafe() []retired {
	oldest := uint64(math.MaxUint64)
	for _, r := range d.readers {
		if seen := r.seen.Load(); seen != 0 {
			oldest = min(oldest, seen)
		}
	}
	n := 0
	for n < len(d.queue) && d.queue[n].epoch <= oldest {
		n++
	}
	safe := d.queue[:n:n]
	d.queue = d.queue[n:]
	return safe
}
