package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	latencyTime   = 2 * time.Second
	latencyWarmUp = 300 * time.Millisecond
	latencyPort   = 5003

	// latencyEvery is 2,000 requests a second: a round trip takes a fifth of this, so that at low load each finds
	// everybody asleep, and a run has 4,000 of them, 40 beyond the 99th percentile.
	latencyEvery = 500 * time.Microsecond

	// capacityPrecision is enough to load a subject to a tenth, a half and nine tenths.
	capacityPrecision = 0.05
)

var latencyMetrics = []metric{
	{name: "p50", long: "rtt_p50", unit: "µs", smaller: true},
	{name: "p99", long: "rtt_p99", unit: "µs", smaller: true},
}

// latencyLoads are the shares of a subject's own non-drop rate under which latency is measured.
var latencyLoads = []struct {
	base  string
	share float64
}{
	{"latency.samenode", 0},
	{"latency.samenode.load10", 0.1},
	{"latency.samenode.load50", 0.5},
	{"latency.samenode.load90", 0.9},
}

// curvePercentiles are where the distribution is drawn.
var curvePercentiles = []float64{0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99}

// Latency measures the round trip of 64-byte requests between two pods on one node, at low load and beside a
// tenth, a half and nine tenths of what each subject carries.
func Latency(ctx context.Context, cfg Config) (*Report, error) {
	return runBenchmark(ctx, cfg, func(ctx context.Context, s *session) ([]Row, error) {
		return s.sameNode(ctx, cfg.Peers, s.latency)
	})
}

// compareLatency is the group of rows of `bench compare`.
func (s *session) compareLatency(ctx context.Context) ([]Row, error) {
	return s.sameNode(ctx, []string{"bridge"}, s.latencyLow)
}

// latencyLow measures the round trip of 64-byte requests at low load.
func (s *session) latencyLow(ctx context.Context) ([]Row, error) {
	return s.latencyUnder(ctx, latencyLoads[0].base, make([]float64, len(s.subjects)))
}

// latency measures it besides under shares of what each subject carries of 64-byte frames of one flow.
func (s *session) latency(ctx context.Context) ([]Row, error) {
	capacity := make([]float64, len(s.subjects))
	for i, sub := range s.subjects {
		f, err := s.nonDropRate(ctx, sub, scenario{}, capacityPrecision)
		if err != nil {
			return nil, fmt.Errorf("latency: the capacity of %s: %w", sub.name(), err)
		}
		capacity[i] = f.took
		s.say("latency: %s carries %s frames/s without loss", sub.name(), short(f.took))
	}
	var rows []Row
	for _, load := range latencyLoads {
		rates := make([]float64, len(capacity))
		for i := range rates {
			rates[i] = load.share * capacity[i]
		}
		r, err := s.latencyUnder(ctx, load.base, rates)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

// latencyUnder measures beside a load of each subject's own rate, in frames per second; 0 is none.
func (s *session) latencyUnder(ctx context.Context, base string, rates []float64) ([]Row, error) {
	rateOf := map[string]int{}
	for i, sub := range s.subjects {
		rateOf[sub.name()] = int(rates[i])
		if _, err := s.ask(ctx, sub, 0, latencyWarmUp); err != nil {
			return nil, fmt.Errorf("%s: warm up %s: %w", base, sub.name(), err)
		}
	}
	all := map[string][]time.Duration{}
	rows, err := s.interleave(ctx, base, latencyMetrics, func(ctx context.Context, sub subject) (values, error) {
		r, err := s.ask(ctx, sub, rateOf[sub.name()], latencyTime)
		if err != nil {
			return nil, err
		}
		if r.Ordinary {
			s.note("%s: this machine grants no real-time priority, so that latency includes the scheduling of the load", base)
		}
		all[sub.name()] = append(all[sub.name()], r.RTT...)
		return values{microseconds(percentile(r.RTT, 50)), microseconds(percentile(r.RTT, 99))}, nil
	})
	for _, sub := range s.subjects {
		if rtts := all[sub.name()]; len(rtts) > 0 {
			s.series = append(s.series, latencySeries(base, sub.name(), rtts))
		}
	}
	return rows, err
}

// latencySeries is the distribution of all runs together; it sorts them.
func latencySeries(base, subject string, rtts []time.Duration) Series {
	slices.Sort(rtts)
	line := Series{Name: base, Subject: subject, X: percentileAxis, Y: "round trip, µs"}
	for _, p := range curvePercentiles {
		// Beyond 1 in n there is nothing but the maximum again.
		if p < 100-100/float64(len(rtts)) {
			line.Points = append(line.Points, [2]float64{p, microseconds(percentile(rtts, p))})
		}
	}
	return line
}

// percentile returns the least of the ascending values that p per cent of them don't exceed: the nearest rank,
// nothing interpolated. Of none it is 0.
func percentile(ascending []time.Duration, p float64) time.Duration {
	if len(ascending) == 0 {
		return 0
	}
	rank := int(math.Ceil(p * float64(len(ascending)) / 100))
	return ascending[max(rank, 1)-1]
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// ask has requests answered for the time given, beside a load of that many frames per second.
func (s *session) ask(ctx context.Context, sub subject, load int, d time.Duration) (*probeResult, error) {
	w, err := s.startAsking(ctx, sub, load, d)
	defer w.abandon()
	if err != nil {
		return nil, err
	}
	before, err := readAccount(ctx, sub)
	if err != nil {
		return nil, err
	}
	a := new(account)
	var asked probeResult
	var answered echoResult
	if w.generate != nil {
		err = w.generate.release()
	}
	if err := errors.Join(err, w.probe.release(), w.probe.collect(&asked)); err != nil {
		return nil, err
	}
	if w.generate != nil {
		err = errors.Join(w.generate.collect(&a.generator), w.sink.release(), w.sink.collect(&a.sink))
	}
	if err := errors.Join(err, w.echo.release(), w.echo.collect(&answered)); err != nil {
		return nil, err
	}
	after, err := readAccount(ctx, sub)
	if err != nil {
		return nil, err
	}
	a.settle(before, after)
	a.addRoundTrips(&asked, &answered)
	return &asked, a.check()
}

// addRoundTrips counts requests and answers like any other frames.
func (a *account) addRoundTrips(asked *probeResult, answered *echoResult) {
	a.generator.Sent += asked.Sent + answered.Answered
	a.sink.Received += answered.Received + uint64(len(asked.RTT))
	a.sink.Overflowed += asked.Dropped + answered.Dropped
	a.from.tx += a.from.rx
	a.to.rx += a.to.tx
}

// askWorkers are the processes of a run; generate and sink are nil without a load.
type askWorkers struct{ probe, echo, generate, sink *worker }

func (s *session) startAsking(ctx context.Context, sub subject, load int, d time.Duration) (w askWorkers, err error) {
	from, to := sub.pods()
	at, peer := netip.AddrPortFrom(from.addr, latencyPort), netip.AddrPortFrom(to.addr, latencyPort)
	if w.echo, err = startWorker(ctx, s.exe, verbEcho, echoSpec{Netns: netnsPath(to.netns), At: peer, Peer: at}, to.cpus); err != nil {
		return w, err
	}
	spec := probeSpec{Netns: netnsPath(from.netns), From: at, To: peer, Every: latencyEvery, Run: rand.Uint64(), Time: d}
	if w.probe, err = startWorker(ctx, s.exe, verbProbe, spec, from.cpus); err != nil || load == 0 {
		return w, err
	}
	g := scenario{rate: load}.generator(from, to, d)
	if w.sink, err = startWorker(ctx, s.exe, verbSink, sinkSpec{Netns: netnsPath(to.netns), At: g.To, Run: g.Run}, to.cpus); err != nil {
		return w, err
	}
	w.generate, err = startWorker(ctx, s.exe, verbGenerate, g, from.cpus)
	return w, err
}

// abandon ends those that were started.
func (w askWorkers) abandon() {
	for _, p := range []*worker{w.probe, w.echo, w.generate, w.sink} {
		if p != nil {
			p.abandon()
		}
	}
}
