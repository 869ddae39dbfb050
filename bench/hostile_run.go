package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// hostileRun is what became of everybody during one attack.
type hostileRun struct {
	stream streamResult
	attack attackResult
	ask    askResult
	cpu    cpuUse
	took   time.Duration
	drops  map[string]uint64 // of the attacker's frames
}

func (r *hostileRun) throughput() float64 {
	return 8 * float64(r.stream.Bytes) / 1e9 / r.stream.Took.Seconds()
}

// hostile runs the attack into the void and into the switch in turn.
func (s *session) hostile(ctx context.Context, l *hostileLab, attack string) ([]Row, error) {
	var runs [2][]*hostileRun
	for round := range s.cfg.Repeat {
		for i, device := range []string{voidDevice, podDevice} {
			r, err := s.underAttack(ctx, l, attackSpec{Attack: attack, Device: device, Seed: uint64(round)}, hostileTime)
			if err != nil {
				return nil, err
			}
			runs[i] = append(runs[i], r)
		}
		base, hit := runs[0][round], runs[1][round]
		s.say("hostile.%s %d/%d: %s Gb/s instead of %s, %d of %d questions answered instead of %d of %d", attack, round+1, s.cfg.Repeat,
			short(hit.throughput()), short(base.throughput()), hit.ask.Answered, hit.ask.Asked, base.ask.Answered, base.ask.Asked)
	}
	return hostileRows("hostile."+attack, runs[0], runs[1]), nil
}

// underAttack has a stream and questions go on for the time given while the attack goes on.
func (s *session) underAttack(ctx context.Context, l *hostileLab, spec attackSpec, d time.Duration) (*hostileRun, error) {
	w, err := s.startWorkers(ctx, l, spec, d)
	defer w.abandon()
	if err != nil {
		return nil, err
	}
	if err := w.attack.release(); err != nil {
		return nil, err
	}
	if err := pause(ctx, hostileLead); err != nil {
		return nil, err
	}
	r := new(hostileRun)
	if err := r.measure(ctx, l, w); err != nil {
		return nil, err
	}
	return r, errors.Join(w.ask.release(), w.ask.collect(&r.ask), w.attack.release(), w.attack.collect(&r.attack))
}

// measure has the stream run from its first byte to its last.
func (r *hostileRun) measure(ctx context.Context, l *hostileLab, w hostileWorkers) error {
	before, err := l.attackerDrops(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	cpu, err := readCPU(l.pids()...)
	if err != nil {
		return err
	}
	var sent streamResult
	if err := errors.Join(w.ask.release(), w.send.release(), w.send.collect(&sent), w.receive.collect(&r.stream)); err != nil {
		return err
	}
	after, err := readCPU(l.pids()...)
	if err != nil {
		return err
	}
	r.cpu, r.took = after.since(cpu), time.Since(start)
	if r.drops, err = l.attackerDrops(ctx); err != nil {
		return err
	}
	for reason, n := range before {
		r.drops[reason] -= n
	}
	if sent.Bytes != r.stream.Bytes {
		return &imbalance{fmt.Sprintf("sent %d bytes, received %d", sent.Bytes, r.stream.Bytes)}
	}
	return nil
}

// hostileWorkers are the processes of a run.
type hostileWorkers struct{ receive, send, ask, attack *worker }

func (s *session) startWorkers(ctx context.Context, l *hostileLab, spec attackSpec, d time.Duration) (w hostileWorkers, err error) {
	from, to := l.pods()
	at := netip.AddrPortFrom(to.addr, tcpPort)
	for _, p := range []struct {
		worker *(*worker)
		verb   string
		spec   any
	}{
		{&w.receive, verbReceive, streamSpec{Netns: netnsPath(to.netns), At: at}},
		{&w.send, verbSend, streamSpec{Netns: netnsPath(from.netns), At: at, Time: d}},
		{&w.ask, verbAsk, l.questions()},
		{&w.attack, verbAttack, l.aim(spec)},
	} {
		if *p.worker, err = startWorker(ctx, s.exe, p.verb, p.spec, s.load); err != nil {
			return w, err
		}
	}
	return w, nil
}

// abandon ends those that were started.
func (w hostileWorkers) abandon() {
	for _, p := range []*worker{w.receive, w.send, w.ask, w.attack} {
		if p != nil {
			p.abandon()
		}
	}
}
