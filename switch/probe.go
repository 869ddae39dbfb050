package vswitch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/neigh"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// proberMAC is whom stations answer when Probe asks them: an address of the switch's own in every network, routed
// or not. It is locally administered and unicast, and like no pod's (0a), router's (02) or pair's (0e).
var proberMAC = wire.MAC{0x12, 't', 'a', 'p', 'y', 'd'}

// probeWaits are how long Probe waits for an answer before it asks again, and at last gives up. A station's kernel
// answers while it is being asked, and the worker is woken within some 100 µs; but IPv6 begins some milliseconds after
// the device was raised, and a busy machine or a full queue may lose or delay either frame. All in all it is a second.
var probeWaits = [...]time.Duration{20 * time.Millisecond, 80 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond}

// questions is how many may wait to be sent: twice what the CNI socket serves at once, 64 pods of two families.
const questions = 256

// question is what Probe asks.
type question struct {
	port port.ID
	mac  wire.MAC
	addr netip.Addr
}

// prober is where Probe and the slow worker meet.
type prober struct {
	asks chan question

	mu      sync.Mutex
	waiting map[question][]chan struct{} // closed with the answer
}

func newProber() prober {
	return prober{asks: make(chan question, questions), waiting: map[question][]chan struct{}{}}
}

// Probe asks the station behind an access port for its address, by ARP or neighbour discovery, and waits until the answer
// has come back through that port. So nil says that frames go out of the port, that whoever has the MAC and the
// address takes them, and that a worker reads what comes back and lets it in. It takes some 0.1 ms, and a second
// if there is no answer.
func (sw *Switch) Probe(ctx context.Context, id port.ID, mac wire.MAC, addr netip.Addr) error {
	ps := sw.snapshot.Load().port(id)
	if ps == nil || ps.role != RoleAccess {
		return fmt.Errorf("probe port %d: no station's port", id)
	}
	q := question{id, mac, addr}
	answered := sw.slow.expect(q)
	defer sw.slow.stopWaiting(q, answered)
	for _, wait := range probeWaits {
		if err := sw.ask(ctx, q, answered, wait); !errors.Is(err, errNoAnswer) {
			return err
		}
	}
	return fmt.Errorf("%w from %v, MAC %v, through port %s to %d questions", errNoAnswer, addr, mac, ps.port.Name(), len(probeWaits))
}

var errNoAnswer = errors.New("no answer")

// ask asks once.
func (sw *Switch) ask(ctx context.Context, q question, answered <-chan struct{}, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	asks := sw.slow.asks
	for {
		select {
		case asks <- q:
			asks = nil // once
		case <-answered:
			return nil
		case <-timer.C:
			return errNoAnswer
		case <-sw.stopping.Done():
			return errors.New("the switch is stopped")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *prober) expect(q question) chan struct{} {
	answered := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting[q] = append(p.waiting[q], answered)
	return answered
}

func (p *prober) stopWaiting(q question, answered chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest := slices.DeleteFunc(p.waiting[q], func(c chan struct{}) bool { return c == answered })
	if p.waiting[q] = rest; len(rest) == 0 {
		delete(p.waiting, q)
	}
}

// answer tells those who wait for it, and whether there are any.
func (p *prober) answer(q question) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.waiting[q] {
		close(c)
	}
	known := p.waiting[q] != nil
	delete(p.waiting, q)
	return known
}

// ask sends a question out of the port.
func (s *slowWorker) ask(q question) {
	s.reader.Online()
	defer s.reader.Offline()
	s.begin()
	ps := s.snap.port(q.port)
	if ps == nil { // detached since
		return
	}
	s.originate(neigh.AskLen, func(out []byte) int { return neigh.Ask(q.addr, q.mac, proberMAC, out) },
		func(f *frame.Frame) { s.sendOut(f, ps.vni, q.port) })
	s.live.Store(int64(s.pool.Live()))
}

// takeAnswer takes what a station sent to the prober: an answer, or some seconds later a neighbour solicitation, by
// which its kernel finds out whether the prober, whom it had to answer, is still there.
func (s *slowWorker) takeAnswer(p *punt) drop.Reason {
	if target, asks := requested(p.bytes(), &p.parsed); asks && target == wire.LinkLocal(proberMAC) {
		s.originate(puntCopy, func(out []byte) int { return neigh.AnswerND(p.bytes(), &p.parsed, proberMAC, false, out) },
			func(f *frame.Frame) { s.sendOut(f, p.vni, p.in.id) })
		return drop.None
	}
	addr, ok := neigh.ReadAnswer(p.bytes(), &p.parsed)
	if !ok || !s.answer(question{p.in.id, wire.Ethernet(p.bytes()).Src(), addr}) {
		return drop.LocalUnhandled
	}
	return drop.None
}
