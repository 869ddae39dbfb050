package encap

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// link is the wire to one peer. It outlives the Peer, which is replaced when the table is.
type link struct {
	own uint64 // this node's session with the peer: random, never changed, not 0

	// Written by the negotiator and cleared by workers: the bytes of a full datagram with a slice; 0 is plain VXLAN.
	size atomic.Uint32

	bundles atomic.Bool // written by the negotiator: with slices, the peer takes bundles

	// Written by workers.
	wanted  atomic.Bool   // another wire would have paid since the negotiator last looked
	tooBig  atomic.Bool   // the kernel refused a datagram for its size
	sent    atomic.Uint32 // messages
	rxWhole atomic.Uint32 // messages received
	rxLost  atomic.Uint32 // those of which slices are missing
	tested  atomic.Uint64 // test << 32 | what of it passed

	said atomic.Pointer[string] // what Peer.Wire says; nil is plain, never asked

	talk // the negotiator's own
}

// talk is what the negotiator knows about a peer. Times are since the negotiator began; those that are 0 never were.
type talk struct {
	session    uint64        // the peer's with this node; 0: not known
	heardAt    time.Duration // a hello of that session that proved itself
	wantedAt   time.Duration // traffic for which another wire would pay
	askAt      time.Duration // when to ask next
	unanswered int           // hellos in a row

	answersAt          time.Duration // when the second began in which were
	answers, strangers int           // asked for by who proved to be the peer, and by who didn't

	test     uint32 // the last one
	testedAt time.Duration
	testSize int // bytes of its datagrams; that which is used when it has passed
	failures int // tests in a row
	passed   bool

	plainUntil time.Duration // after losses
	penalty    time.Duration // how long that was; doubles
	beganAt    time.Duration // when slices were last begun with

	toldWhole, toldLost uint32 // as the peer last told of link.rxWhole and rxLost at its end
	whole, lost         uint32 // of these, in the window at hand

	sentAt         time.Duration // when
	sentThen, seen uint32        // so many messages were sent; so many when the peer last told of one that came
}

func newLink() *link { return &link{own: rand.Uint64() | 1} }

// Wire says for operators how super-frames cross to the peer, and why if that is plain VXLAN. It may be called from any
// goroutine.
func (p *Peer) Wire() string {
	if p.link != nil {
		if s := p.link.said.Load(); s != nil {
			return *s
		}
	}
	return "vxlan"
}

// Slices says whether super-frames cross to the peer whole, in slices. It may be called from any goroutine.
func (p *Peer) Slices() bool { return p.link != nil && p.link.size.Load() != 0 }

// bundleSize returns the bytes of a full datagram with a bundle, or 0 if the peer takes none.
func (l *link) bundleSize() int {
	if !l.bundles.Load() {
		return 0
	}
	return int(l.size.Load())
}

func (l *link) say(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	l.said.Store(&s)
}

// plain goes back to plain VXLAN, for a reason that operators see.
func (l *link) plain(format string, args ...any) {
	l.size.Store(0)
	l.say("vxlan: "+format, args...)
}

// slice begins with slices.
func (l *link) slice(now time.Duration) {
	l.beganAt, l.whole, l.lost = now, 0, 0
	l.seen, l.sentThen, l.sentAt = l.sent.Load(), l.sent.Load(), now
	l.size.Store(uint32(l.testSize))
	bundles := ""
	if l.bundles.Load() {
		bundles = ", small frames in bundles"
	}
	l.say("slices of %d bytes%s", l.testSize, bundles)
}

// untested forgets the last test, whose result the peer goes on telling.
func (l *link) untested() { l.passed, l.test = false, 0 }

// punish goes back to plain VXLAN for a while, which is twice as long each time, and has the way tested again then.
func (l *link) punish(now time.Duration, format string, args ...any) {
	l.penalty = min(max(2*l.penalty, minPenalty), maxPenalty)
	l.untested()
	l.plainUntil, l.askAt = now+l.penalty, now+l.penalty
	l.plain("%s; the next try comes %v later", fmt.Sprintf(format, args...), l.penalty)
}
