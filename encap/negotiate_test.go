package encap

import (
	"strings"
	"testing"
	"time"

	"tapyard/bench/seed"
)

// talker is one of two nodes that talk over a wire in memory. Their time passes as the test says.
type talker struct {
	t         *testing.T
	n         *negotiator // nil: no Tapyard, or an old one
	peer      *Peer       // the far end, as this one knows it
	far       *talker
	inbox     [][]byte
	hellos    int // sent
	tests     int
	garbled   bool // tests from here arrive with a message missing
	testSize  int
	swallowed bool // super-frames from here don't arrive, not even in parts
}

var _ outbox = (*talker)(nil)

func newTalkers(t *testing.T) (a, b *talker) {
	a, b = &talker{t: t, testSize: 1472}, &talker{t: t, testSize: 1472}
	a.far, b.far = b, a
	a.restart()
	b.restart()
	return a, b
}

// restart is a start with nothing known.
func (k *talker) restart() {
	k.n = newNegotiator(k)
	k.readd()
}

// readd is what becomes of the far end when it is removed from the peers and added again.
func (k *talker) readd() { k.peer = &Peer{Index: 1, Name: "far", link: newLink()} }

func (k *talker) hello(_ *Peer, h hello) {
	k.hellos++
	b := make([]byte, helloLen)
	h.encode(b)
	k.far.inbox = append(k.far.inbox, b)
}

func (k *talker) test(_ *Peer, test uint32) int {
	k.tests++
	passed := uint64(testPassed)
	if k.garbled {
		passed &^= 4
	}
	k.far.peer.link.tested.Store(uint64(test)<<32 | passed)
	return k.testSize
}

func (k *talker) size() uint32 { return k.peer.link.size.Load() }

// pass has the time from one second to another pass; those of traffic have some all the time.
func pass(from, to int, traffic ...*talker) {
	passUntil(time.Duration(from)*time.Second, time.Duration(to)*time.Second, traffic...)
}

func passUntil(now, to time.Duration, traffic ...*talker) {
	a := traffic[0]
	for ; now < to; now += helloEvery {
		for _, k := range traffic {
			k.send(now)
		}
		deliver(a, now)
		for _, k := range []*talker{a, a.far} {
			if k.n != nil {
				k.n.tick(now)
			}
		}
		deliver(a, now+time.Millisecond)
	}
}

// send sends two super-frames.
func (k *talker) send(now time.Duration) {
	if k.n == nil {
		return
	}
	k.n.want(k.peer, now)
	if k.size() != 0 {
		k.peer.link.sent.Add(2)
		if k.far.n != nil && !k.swallowed {
			k.far.peer.link.rxWhole.Add(2)
		}
	}
}

// deliver delivers hellos until there are no more, which must be soon.
func deliver(a *talker, now time.Duration) {
	for rounds := 0; len(a.inbox)+len(a.far.inbox) > 0; rounds++ {
		if rounds > 20 {
			a.t.Fatal("hellos without end")
		}
		for _, k := range []*talker{a, a.far} {
			inbox := k.inbox
			k.inbox = nil
			for _, b := range inbox {
				if !isHello(b) {
					k.t.Fatalf("%x is no hello", b)
				}
				if k.n != nil {
					k.n.hear(k.peer, parseHello(b), now)
				}
			}
		}
	}
}

func (k *talker) require(slices bool, said string) {
	k.t.Helper()
	if got := k.size() != 0; got != slices || !strings.Contains(k.peer.Wire(), said) {
		k.t.Fatalf("slices %t, says %q; want %t, %q", got, k.peer.Wire(), slices, said)
	}
}

// A sender with traffic gets slices at once, the other direction only with traffic of its own; without any, nobody says a
// word, and the next traffic needs no test.
func TestNegotiation(t *testing.T) {
	a, b := newTalkers(t)
	a.require(false, "vxlan")
	pass(1, 2, a)
	a.require(true, "slices of 1472 bytes")
	b.require(false, "vxlan")
	pass(2, 10, a)
	if a.tests != 1 || b.tests != 0 {
		t.Errorf("tests: %d and %d, want 1 and 0", a.tests, b.tests)
	}
	pass(10, 12, b)
	b.require(true, "slices")
	for now := 12 * time.Second; now < 40*time.Second; now += helloEvery { // silence
		a.n.tick(now)
		b.n.tick(now)
		deliver(a, now)
	}
	a.require(false, "no traffic")
	hellos := a.hellos + b.hellos
	if len(a.n.active)+len(b.n.active) != 0 {
		t.Error("peers without traffic are active")
	}
	pass(40, 41, a)
	a.require(true, "slices")
	if a.tests != 1 {
		t.Errorf("%d tests, want no second one", a.tests)
	}
	if n := a.hellos + b.hellos - hellos; n > 10 {
		t.Errorf("%d hellos to resume", n)
	}
}

// A peer that doesn't know hellos is asked ever more rarely, hears no test, and gets plain VXLAN; when it is one that
// does, it is found.
func TestNegotiationWithoutAnswer(t *testing.T) {
	a, b := newTalkers(t)
	b.n = nil
	pass(1, 3600, a)
	a.require(false, "no answer")
	// 1/4 + 1/2 + ... + 256 s and then every 5 minutes.
	if a.hellos < 17 || a.hellos > 27 || a.tests != 0 {
		t.Errorf("%d hellos and %d tests in an hour", a.hellos, a.tests)
	}
	b.restart()
	pass(3600, 3605, b) // speaks first
	a.n.want(a.peer, 3605*time.Second)
	pass(3605, 3607, a)
	a.require(true, "slices")
}

// Whatever becomes of a peer, slices end within helloTimeout and a tick; where it starts again, they are back at once.
func TestNegotiationEnds(t *testing.T) {
	for name, end := range map[string]func(b *talker){
		"killed":  func(b *talker) { b.n = nil },
		"leaves":  func(b *talker) { b.n.leave(map[uint32]*Peer{1: b.peer}, b.peer.Underlay, 9*time.Second); b.n = nil },
		"restart": func(b *talker) { b.restart() },
	} {
		a, b := newTalkers(t)
		pass(1, 10, a, b)
		a.require(true, "slices")
		tests := a.tests
		end(b)
		deliver(a, 9500*time.Millisecond)
		if name == "leaves" {
			a.require(false, "takes no slices")
		}
		passUntil(10*time.Second, 11*time.Second, a)
		if name == "restart" {
			a.require(true, "slices")
			if a.tests != tests+1 {
				t.Errorf("%d tests after a restart, want one", a.tests-tests)
			}
			continue
		}
		a.require(false, "")
		b.restart()
		pass(11, 40, a)
		a.require(true, "slices")
	}
}

// A peer that is removed and added again at the far end is like one that has started again: what it had told of losses
// doesn't count against what it tells now.
func TestNegotiationWithReaddedPeer(t *testing.T) {
	a, b := newTalkers(t)
	pass(1, 10, a)
	b.peer.link.rxLost.Add(1) // one is none
	b.peer.link.rxWhole.Add(1000)
	pass(10, 12, a)
	a.require(true, "slices")
	tests := a.tests
	b.readd()
	pass(12, 13, a)
	a.require(true, "slices")
	if a.tests != tests+1 || a.peer.link.penalty != 0 {
		t.Errorf("%d tests, penalty %v", a.tests-tests, a.peer.link.penalty)
	}
}

// A way that lets hellos through, but not a part of any super-frame, isn't used for long, neither by much traffic nor by
// little.
func TestNegotiationNoticesBlackHole(t *testing.T) {
	for name, every := range map[string]time.Duration{"much": helloEvery, "little": 3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			a, _ := newTalkers(t)
			pass(1, 10, a)
			a.require(true, "slices")
			a.swallowed = true
			start := 10 * time.Second
			sent := a.peer.link.sent.Load()
			for now := start; a.size() != 0; now += helloEvery {
				if now > start+30*time.Second {
					t.Fatal("slices go on")
				}
				if (now-start)%every == 0 {
					a.send(now)
				}
				passIdle(a, now)
			}
			a.require(false, "super-frames arrived; the next try comes 8s later")
			if n := a.peer.link.sent.Load() - sent; n > maxUnseen+6 {
				t.Errorf("%d super-frames lost", n)
			}
		})
	}
}

// passIdle is one tick without traffic.
func passIdle(a *talker, now time.Duration) {
	a.n.tick(now)
	a.far.n.tick(now)
	deliver(a, now+time.Millisecond)
}

// One super-frame now and then, each of which loses slices, is as bad as many of which as large a share does.
func TestNegotiationUnderRareLoss(t *testing.T) {
	a, b := newTalkers(t)
	pass(1, 4, a)
	a.require(true, "slices")
	for now := 4 * time.Second; now < 12*time.Second; now += helloEvery {
		if now%(2*time.Second) == 0 {
			a.n.want(a.peer, now)
			a.peer.link.sent.Add(1)
			b.peer.link.rxLost.Add(1)
		}
		passIdle(a, now)
	}
	a.require(false, "super-frames lost slices")
}

// Whatever happens, in any order: slices are used only after a test has passed that was sent in the sessions of now, and
// never a second after the peer was last heard.
func TestNegotiationAtRandom(t *testing.T) {
	r := seed.Rand(t)
	for range 200 {
		a, b := newTalkers(t)
		heard := time.Duration(0) // a heard b, or may have
		for now := time.Second; now < 100*time.Second; now += helloEvery {
			switch r.IntN(40) {
			case 0:
				b.restart()
			case 1:
				b.n = nil
			case 2:
				b.readd()
			case 3:
				a.garbled = !a.garbled
			case 4:
				a.swallowed = !a.swallowed
			case 5:
				a.n.hear(a.peer, hello{asks: true, offers: true, session: r.Uint64(), echo: r.Uint64(), test: a.peer.link.test, passed: testPassed}, now)
			case 6:
				if b.n != nil {
					b.n.leave(map[uint32]*Peer{1: b.peer}, b.peer.Underlay, now)
				}
				b.n = nil
			case 7:
				a.inbox = nil // lost
			case 8:
				a.peer.link.size.Store(0)
				a.peer.link.tooBig.Store(true)
			}
			if b.n == nil && r.IntN(8) == 0 {
				b.restart()
			}
			tests := a.tests
			was := a.size() != 0
			if r.IntN(3) > 0 {
				a.send(now)
			}
			if b.n != nil {
				heard = now
				passIdle(a, now)
			} else {
				a.n.tick(now)
				a.far.inbox = nil
				deliver(a, now)
			}
			if a.size() != 0 && now-heard >= time.Second {
				t.Fatalf("slices %v after the peer was last there", now-heard)
			}
			if l := a.peer.link; a.size() != 0 && !was && (l.test == 0 || uint64(l.test)<<32|testPassed != b.peer.link.tested.Load()) {
				t.Fatalf("slices began without a test that passed; %d tests just now", a.tests-tests)
			}
		}
	}
}

// Where slices get lost, VXLAN takes over for a while, longer each time, and the way is tested again.
func TestNegotiationUnderLoss(t *testing.T) {
	a, b := newTalkers(t)
	now, plain := 1, 0
	for _, atLeast := range []int{8, 16, 32, 64, 128, 256, 512, 600, 600} {
		pass(now, now+3, a)
		now += 3
		a.require(true, "slices")
		l := b.peer.link
		l.rxWhole.Add(200)
		l.rxLost.Add(1) // one is as good as none
		pass(now, now+2, a)
		a.require(true, "slices")
		l.rxWhole.Add(200)
		l.rxLost.Add(9)
		now += 2
		pass(now, now+1, a)
		now++
		a.require(false, "super-frames lost slices")
		hellos, tests := a.hellos, a.tests
		for plain = 0; a.size() == 0 && plain < 2000; plain++ {
			pass(now, now+1, a)
			now++
		}
		if plain < atLeast-3 || plain > atLeast+3 {
			t.Fatalf("back after %d s, want about %d", plain, atLeast)
		}
		if n := a.hellos - hellos; n > 8 {
			t.Errorf("%d hellos during a penalty", n)
		}
		if a.tests != tests+1 {
			t.Errorf("%d tests after a penalty, want one: the last one's result doesn't count", a.tests-tests)
		}
	}
	pass(now, now+int(goodAfter.Seconds())+5, a)
	a.require(true, "slices")
	if a.peer.link.penalty != 0 {
		t.Errorf("a good way still has a penalty of %v", a.peer.link.penalty)
	}
}

// A way that doesn't carry the test stays plain.
func TestNegotiationFailsTest(t *testing.T) {
	a, _ := newTalkers(t)
	a.garbled = true
	pass(1, 6, a)
	a.require(false, "don't arrive whole")
	pass(6, 600, a)
	a.require(false, "don't arrive whole")
	if a.tests < 6 || a.tests > 30 {
		t.Errorf("%d tests in 10 minutes", a.tests)
	}
	a.garbled = false
	pass(600, 1200, a)
	a.require(true, "slices")
}

// Who doesn't get what is sent to the peer's address changes nothing, and is answered little.
func TestNegotiationForged(t *testing.T) {
	r := seed.Rand(t)
	a, b := newTalkers(t)
	pass(1, 10, a)
	hellos := a.hellos
	before := *a.peer.link.said.Load()
	for range 1000 {
		a.n.hear(a.peer, hello{asks: r.IntN(2) == 0, offers: r.IntN(2) == 0, session: r.Uint64(), echo: r.Uint64(),
			whole: r.Uint32(), lost: r.Uint32(), test: a.peer.link.test, passed: testPassed}, 10*time.Second)
	}
	b.inbox = nil
	a.require(true, before)
	if n := a.hellos - hellos; n > 2 {
		t.Errorf("%d answers to 1,000 forged hellos", n)
	}
	pass(10, 20, a)
	a.require(true, before)

	c, d := newTalkers(t)
	d.n = nil // an old one, whom somebody wants to get slices
	for s := 1; s < 100; s++ {
		c.n.hear(c.peer, hello{asks: true, offers: true, session: 4711, echo: r.Uint64(), passed: testPassed}, time.Duration(s)*time.Second)
		pass(s, s+1, c)
	}
	c.require(false, "vxlan")
	if c.tests != 0 || c.hellos > 500 {
		t.Errorf("%d tests, %d hellos", c.tests, c.hellos)
	}
}

// The kernel refuses a datagram for its size: the next one is plain, and the way is tested with the size that fits now.
func TestNegotiationAfterMTUChange(t *testing.T) {
	a, _ := newTalkers(t)
	pass(1, 5, a)
	a.peer.link.size.Store(0) // as the worker does
	a.peer.link.tooBig.Store(true)
	pass(5, 7, a)
	a.require(true, "slices")
	if a.tests != 2 {
		t.Errorf("%d tests, want 2", a.tests)
	}
	a.testSize = 8972 // the route has more room since: nothing tells, so it is looked up now and then
	pass(7, 7+int(goodAfter.Seconds())+10, a)
	a.require(true, "slices of 8972 bytes")
}

// FuzzHello: any datagram is a hello that says the same when it is written again, or none.
func FuzzHello(f *testing.F) {
	b := make([]byte, helloLen)
	(&hello{asks: true, offers: true, bundles: true, session: 1 << 63, echo: 2, whole: 3, lost: 4, test: 5, passed: 6}).encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if !isHello(b) {
			return
		}
		h := parseHello(b)
		again := make([]byte, helloLen)
		h.encode(again)
		if got := parseHello(again); !isHello(again) || got != h {
			t.Errorf("%+v became %+v", h, got)
		}
	})
}
