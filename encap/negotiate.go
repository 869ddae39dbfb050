package encap

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// The negotiator's times. A peer that was killed and came back as a version without slices is sent some for helloTimeout
// and a tick at most: less than a second, in which TCP has sent again what was lost once or twice.
const (
	helloEvery   = 250 * time.Millisecond // to a peer that answers, while there is traffic
	helloTimeout = 700 * time.Millisecond // two unanswered ones
	helloMax     = 5 * time.Minute        // to one that doesn't; doubled up to there from helloEvery
	testEvery    = time.Second            // within which the answer to a test is to be expected, on a busy machine too
	idleAfter    = 10 * time.Second       // without traffic, a peer is left alone

	minPenalty, maxPenalty = 8 * time.Second, 10 * time.Minute
	// Slices have worked for so long that the next penalty is the least, and that the way is tested again: its MTU may be
	// another one.
	goodAfter = 5 * time.Minute

	// More lost messages than one of lossRatio, and two at least, of the last lossWindow are too many. One lost slice costs a
	// whole super-frame, 45 packets: at this ratio the network loses one datagram of 6,000, and plain VXLAN would lose as few
	// packets.
	lossRatio   = 128
	lossWindow  = 8 * lossRatio
	maxUnseen   = 4 // messages of which not even a part was seen, without others
	maxFailures = 3 // tests in a row
)

// negotiator finds out for each peer with traffic whether it takes super-frames in slices, and watches that it still
// does. All of it belongs to one goroutine; it reads no clock and sends nothing by itself.
type negotiator struct {
	active map[uint32]*Peer // by index: those with traffic
	out    outbox
}

// outbox is how a negotiator reaches its peers.
type outbox interface {
	// hello sends a hello.
	hello(*Peer, hello)
	// test sends the messages of a test and returns the bytes of their datagrams, or 0 if there is no way to the peer.
	test(p *Peer, test uint32) (size int)
}

func newNegotiator(out outbox) *negotiator {
	return &negotiator{active: map[uint32]*Peer{}, out: out}
}

// want notes traffic to a peer for which another wire would pay.
func (n *negotiator) want(p *Peer, now time.Duration) {
	p.link.wantedAt = now
	if n.active[p.Index] == nil {
		n.active[p.Index] = p
		n.pursue(p, now)
	}
}

// keep forgets those that are no peers any more.
func (n *negotiator) keep(peers map[uint32]*Peer) {
	for index := range n.active {
		if peers[index] == nil {
			delete(n.active, index)
		}
	}
}

// tick does what is due; it is called every helloEvery while anybody is active.
func (n *negotiator) tick(now time.Duration) {
	for index, p := range n.active {
		l := p.link
		l.wanted.Store(false) // and true again with the next traffic
		if now-l.wantedAt > idleAfter {
			l.plain("no traffic")
			delete(n.active, index)
			continue
		}
		n.pursue(p, now)
	}
}

// pursue brings the wire to a peer a step on.
func (n *negotiator) pursue(p *Peer, now time.Duration) {
	l := p.link
	if l.tooBig.Swap(false) {
		l.untested()
		l.plain("the underlay's MTU has changed")
	}
	if l.session != 0 && !l.answering(now) && l.size.Load() != 0 {
		l.plain("the peer is silent")
	}
	if now < l.plainUntil {
		return
	}
	if l.passed && now-l.testedAt > goodAfter {
		l.untested() // slices go on meanwhile
	}
	if l.answering(now) && !l.passed && (l.testedAt == 0 || now-l.testedAt >= testEvery) {
		n.test(p, now)
	}
	if l.answering(now) && l.passed && int(l.size.Load()) != l.testSize {
		l.slice(now)
	}
	if now >= l.askAt {
		n.ask(p, now)
	}
}

// answering says that the peer has proved itself lately.
func (l *talk) answering(now time.Duration) bool {
	return l.session != 0 && now-l.heardAt <= helloTimeout
}

// ask sends a hello that wants an answer.
func (n *negotiator) ask(p *Peer, now time.Duration) {
	l := p.link
	n.send(p, l.session, true)
	wait := helloEvery
	if !l.answering(now) {
		wait = min(helloEvery<<min(l.unanswered, 20), helloMax)
		if l.unanswered > 2 {
			l.plain("no answer to an offer of slices")
		}
	}
	l.unanswered++
	l.askAt = now + wait - helloEvery/2 // the tick that is nearest
}

// test tests the way to a peer, and asks for the result.
func (n *negotiator) test(p *Peer, now time.Duration) {
	l := p.link
	if l.failures++; l.failures > maxFailures {
		l.failures = 0
		l.punish(now, "messages that test the way don't arrive whole")
		return
	}
	l.test, l.testedAt = rand.Uint32()|1, max(now, 1)
	if l.testSize = n.out.test(p, l.test); l.testSize != 0 {
		n.ask(p, now)
	}
}

// send sends a hello to the peer whose session is known as echo, or 0.
func (n *negotiator) send(p *Peer, echo uint64, asks bool) {
	l := p.link
	tested := l.tested.Load()
	n.out.hello(p, hello{asks: asks, offers: true, bundles: true, session: l.own, echo: echo, whole: l.rxWhole.Load(), lost: l.rxLost.Load(),
		test: uint32(tested >> 32), passed: uint32(tested)})
}

// hear takes a hello from a peer's address. Anybody may have sent it; only one that proves itself, by the session that this
// node tells nobody but that peer, changes anything.
func (n *negotiator) hear(p *Peer, h hello, now time.Duration) {
	l := p.link
	proved := h.echo == l.own
	if h.asks && l.mayAnswer(proved, now) {
		n.send(p, h.session, false)
	}
	if !proved {
		if !l.answering(now) && l.unanswered > 0 { // somebody is there who wasn't before
			l.unanswered, l.askAt = 0, min(l.askAt, now+helloEvery)
		}
		return
	}
	if h.session != l.session {
		l.talk = talk{session: h.session, wantedAt: l.wantedAt, toldWhole: h.whole, toldLost: h.lost}
		if l.plain("no traffic"); n.active[p.Index] != nil {
			l.plain("the way is being tested")
		}
	}
	l.bundles.Store(h.bundles)
	l.heardAt, l.unanswered = now, 0
	l.askAt = min(l.askAt, now+helloEvery)
	n.judge(l, h, now)
	if n.active[p.Index] != nil {
		n.pursue(p, now)
	}
}

// mayAnswer bounds what answers cost, apart for those who have proved themselves.
func (l *link) mayAnswer(proved bool, now time.Duration) bool {
	if now-l.answersAt > time.Second {
		l.answersAt, l.answers, l.strangers = now, 0, 0
	}
	if !proved {
		l.strangers++
		return l.strangers <= 2
	}
	l.answers++
	return l.answers <= 20
}

// judge draws from the hello of a peer what the wire to it is to be.
func (n *negotiator) judge(l *link, h hello, now time.Duration) {
	using := l.size.Load() != 0
	unseen := l.account(h, using, now)
	switch {
	case !h.offers:
		l.session = 0 // not answering
		l.untested()
		l.plain("the peer takes no slices")
	case using && l.lost > 1 && l.lost > (l.whole+l.lost)/lossRatio:
		l.punish(now, "%d of %d super-frames lost slices", l.lost, l.whole+l.lost)
	case using && unseen >= maxUnseen:
		l.punish(now, "none of %d super-frames arrived", unseen)
	case using && now-l.beganAt > goodAfter:
		l.penalty = 0
	}
	if !l.passed && l.test != 0 && h.test == l.test && h.passed == testPassed {
		l.passed, l.failures = true, 0
	}
}

// account adds to what was whole and lost of late what the peer tells. It returns how many messages were sent before the
// hello before this one while the peer has seen nothing.
func (l *link) account(h hello, using bool, now time.Duration) (unseen uint32) {
	whole, lost, sent := h.whole-l.toldWhole, h.lost-l.toldLost, l.sent.Load()
	l.toldWhole, l.toldLost = h.whole, h.lost
	if l.whole+l.lost >= lossWindow {
		l.whole, l.lost = 0, 0
	}
	l.whole += whole
	l.lost += lost
	if whole+lost > 0 || !using {
		l.seen, l.sentThen, l.sentAt = sent, sent, now
	}
	if now-l.sentAt >= helloEvery { // two hellos may follow close upon each other
		unseen = l.sentThen - l.seen
		l.sentThen, l.sentAt = sent, now
	}
	return unseen
}

// leave tells those of the peers that may be sending slices that they won't be taken any more.
func (n *negotiator) leave(peers map[uint32]*Peer, local netip.Addr, now time.Duration) {
	for _, p := range peers {
		if p.Underlay.Is4() == local.Is4() && p.link.answering(now) { // the link is this negotiator's
			n.out.hello(p, hello{session: p.link.own, echo: p.link.session})
		}
	}
}
