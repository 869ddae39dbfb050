package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tapyard/switch/observe"
)

const (
	hostileTime = 2 * time.Second

	// hostileLead is how long an attack has lasted when the stream and the questions begin: a ring of 1000
	// frames and the switch's queues are full by then.
	hostileLead = 200 * time.Millisecond

	// askEvery makes 20 questions a second; four targets in turn leave each answer 200 ms.
	askEvery = 50 * time.Millisecond

	// hostilePrefix6 is the pods' other subnet, for neighbour discovery.
	hostilePrefix6 = "fd00:10:244:1::/64"

	// voidDevice is in the attacker's pod and swallows everything: what is sent there costs its sender what
	// it costs to make frames, and the switch nothing.
	voidDevice = "void0"
)

// HostileConfig says which attacks are measured, and how often.
type HostileConfig struct {
	Config           // Peers are ignored
	Attacks []string // by name; none is all
}

func hostileCommand() *cobra.Command {
	var cfg HostileConfig
	cmd := benchmarkCommand("hostile", "What a pod that attacks at full rate costs its neighbours", func(ctx context.Context, progress io.Writer) (*Report, error) {
		cfg.Progress = progress
		return Hostile(ctx, cfg)
	})
	cmd.Flags().StringSliceVar(&cfg.Attacks, "attacks", attackNames(), "what the hostile pod does")
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", 9, "pairs of runs of each attack")
	return cmd
}

// Hostile measures what a hostile pod costs a TCP stream between two neighbours, and a third one that asks
// for link-layer addresses. Each attack runs twice in turn: into a device that swallows everything, which
// costs the machine the making of the frames, and into the switch. The ratio of the two streams is what the
// switch lets the attack cost.
func Hostile(ctx context.Context, cfg HostileConfig) (report *Report, err error) {
	for _, name := range cfg.Attacks {
		if _, err := attackNamed(name); err != nil {
			return nil, err
		}
	}
	if len(cfg.Attacks) == 0 {
		cfg.Attacks = attackNames()
	}
	s, err := prepare(cfg.Config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	// Nobody is kept off anybody's cores: on a node with a hostile pod there is no half that it can't reach, and
	// a switch that is busy with it is to take the time from the neighbours, where it shows.
	if err := unix.SchedGetaffinity(0, &s.load); err != nil {
		return nil, fmt.Errorf("read CPU affinity: %w", err)
	}
	s.forward = s.load
	var lab *hostileLab
	if err := s.start(ctx, []starter{func(ctx context.Context, s *session) (_ subject, err error) {
		lab, err = startHostile(ctx, s)
		return lab, err
	}}); err != nil {
		return nil, err
	}
	report = &Report{Host: hostLine(), Commit: commit()}
	for _, name := range cfg.Attacks {
		rows, err := s.hostile(ctx, lab, name)
		if ctx.Err() != nil {
			return nil, errors.New("interrupted")
		}
		if err != nil {
			return nil, fmt.Errorf("attack %s: %w", name, err)
		}
		report.Rows = append(report.Rows, rows...)
	}
	return report, nil
}

// hostileLab is the switch with four pods: from and to have a stream, asker asks, attacker attacks.
type hostileLab struct {
	*agent
	attacker, asker pod
	ports           map[string]observe.Port // by MAC
	gateway         station
}

func startHostile(ctx context.Context, s *session) (*hostileLab, error) {
	l := &hostileLab{agent: newAgent(s), attacker: pod{netns: benchPrefix + "pod-h"}, asker: pod{netns: benchPrefix + "pod-c"}}
	l.subnets = append(l.subnets, hostilePrefix6)
	if err := l.start(ctx, s); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *hostileLab) start(ctx context.Context, s *session) error {
	if err := l.agent.start(ctx, s); err != nil {
		return err
	}
	for _, p := range []*pod{&l.attacker, &l.asker} {
		if err := makeNetns(p.netns); err != nil {
			return err
		}
		if err := l.attach(ctx, p); err != nil {
			return err
		}
	}
	if err := inNetns(l.attacker.netns, func() error { return addVoid(voidDevice) }); err != nil {
		return err
	}
	var err error
	if l.ports, err = l.readPorts(ctx); err != nil {
		return err
	}
	var neighbors []observe.Neighbor
	if err := l.client().Get(ctx, "neighbors", &neighbors); err != nil {
		return err
	}
	l.gateway = station{IP4: netip.MustParsePrefix(podPrefix).Addr().Next(), IP6: netip.MustParsePrefix(hostilePrefix6).Addr().Next()}
	for _, n := range neighbors {
		if n.Address == l.gateway.IP4 {
			l.gateway.MAC = n.MAC
		}
	}
	return nil
}

func (l *hostileLab) client() observe.Client { return observe.Client{Socket: l.socket("admin.sock")} }

func (l *hostileLab) readPorts(ctx context.Context) (map[string]observe.Port, error) {
	var ports []observe.Port
	if err := l.client().Get(ctx, "ports", &ports); err != nil {
		return nil, err
	}
	byMAC := map[string]observe.Port{}
	for _, p := range ports {
		byMAC[p.MAC] = p
	}
	return byMAC, nil
}

// station is the pod as the switch knows it.
func (l *hostileLab) station(p pod) station {
	var st station
	copy(st.MAC[:], p.mac)
	for _, a := range l.ports[p.mac.String()].Addresses {
		if a.Is4() {
			st.IP4 = a
		} else {
			st.IP6 = a
		}
	}
	return st
}

// aim fills in who attacks whom.
func (l *hostileLab) aim(spec attackSpec) attackSpec {
	spec.Netns, spec.Own, spec.Victim, spec.Router = netnsPath(l.attacker.netns), l.station(l.attacker), l.station(l.to), l.gateway
	return spec
}

// questions are the asker's: for the stream's receiver and the gateway, in both families.
func (l *hostileLab) questions() askSpec {
	to := l.station(l.to)
	return askSpec{Netns: netnsPath(l.asker.netns), Device: podDevice, Own: l.station(l.asker), Every: askEvery,
		Targets: []netip.Addr{to.IP4, to.IP6, l.gateway.IP4, l.gateway.IP6}}
}

// attackerDrops returns what the switch has dropped of the attacker's so far, by reason, and as "ring" what the
// kernel dropped because the switch did not fetch it.
func (l *hostileLab) attackerDrops(ctx context.Context) (map[string]uint64, error) {
	var drops []observe.Drop
	if err := l.client().Get(ctx, "drops", &drops); err != nil {
		return nil, err
	}
	counts := map[string]uint64{}
	for _, d := range drops {
		if d.Port == l.ports[l.attacker.mac.String()].Name {
			counts[d.Reason] += d.WireFrames
		}
	}
	kernel, err := l.attacker.kernelDrops()
	counts["ring"] = kernel.tx
	return counts, err
}

func (l *hostileLab) close() error {
	return errors.Join(l.agent.close(), deleteNetns(l.attacker.netns, l.asker.netns))
}

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
	before, err := l.attackerDrops(ctx)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	cpu, err := readCPU(l.pid())
	if err != nil {
		return nil, err
	}
	r := new(hostileRun)
	var sent streamResult
	if err := errors.Join(w.ask.release(), w.send.release(), w.send.collect(&sent), w.receive.collect(&r.stream)); err != nil {
		return nil, err
	}
	after, err := readCPU(l.pid())
	if err != nil {
		return nil, err
	}
	r.cpu, r.took = after.since(cpu), time.Since(start)
	if r.drops, err = l.attackerDrops(ctx); err != nil {
		return nil, err
	}
	for reason, n := range before {
		r.drops[reason] -= n
	}
	if err := errors.Join(w.ask.release(), w.ask.collect(&r.ask), w.attack.release(), w.attack.collect(&r.attack)); err != nil {
		return nil, err
	}
	if sent.Bytes != r.stream.Bytes {
		return nil, &imbalance{fmt.Sprintf("sent %d bytes, received %d", sent.Bytes, r.stream.Bytes)}
	}
	return r, nil
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

// hostileBase is the word for the runs into the void.
const hostileBase = "baseline"

// hostileRows sums up an attack: the streams' ratio, and both sides' own figures.
func hostileRows(base string, void, hit []*hostileRun) []Row {
	var ratios []float64
	for i := range hit {
		ratios = append(ratios, hit[i].throughput()/void[i].throughput())
	}
	q, _ := quartiles(ratios)
	rows := []Row{{Name: base + ".tcp", Unit: unitRatio, Peer: hostileBase, Value: q[1], Ratio: q[1], Low: q[0], High: q[2]}}
	for _, side := range []struct {
		name string
		runs []*hostileRun
	}{{"hostile", hit}, {hostileBase, void}} {
		add := func(name, unit string, figure func(*hostileRun) float64) {
			rows = append(rows, medianRow(base+"."+name+"."+side.name, unit, side.runs, figure))
		}
		add("throughput", "Gb/s", (*hostileRun).throughput)
		add("switch_cpu", "CPU seconds of the switch per second", func(r *hostileRun) float64 { return r.cpu.process.Seconds() / r.took.Seconds() })
		add("offered", "frames/s of the attack", func(r *hostileRun) float64 { return float64(r.attack.Sent) / r.attack.Took.Seconds() })
		rows = append(rows, questionRows(base, side.name, side.runs)...)
	}
	for _, reason := range reasonsOf(hit) {
		rows = append(rows, medianRow(base+".drops."+reason, "frames/s of the attack dropped", hit,
			func(r *hostileRun) float64 { return float64(r.drops[reason]) / r.took.Seconds() }))
	}
	return rows
}

func questionRows(base, side string, runs []*hostileRun) []Row {
	asked, answered, slowest := 0, 0, time.Duration(0)
	for _, r := range runs {
		asked += r.ask.Asked
		answered += r.ask.Answered
		slowest = max(slowest, r.ask.Slowest)
	}
	return []Row{
		single(strings.Join([]string{base, "answers", side}, "."), float64(answered), fmt.Sprintf("of %d ARP and ND questions", asked)),
		single(strings.Join([]string{base, "slowest_answer", side}, "."), milliseconds(slowest), "ms"),
	}
}

func medianRow(name, unit string, runs []*hostileRun, figure func(*hostileRun) float64) Row {
	var xs []float64
	for _, r := range runs {
		xs = append(xs, figure(r))
	}
	q, _ := quartiles(xs)
	return Row{Name: name, Unit: unit, Value: q[1], Low: q[0], High: q[2]}
}

// reasonsOf lists under which reasons frames were dropped in any of the runs.
func reasonsOf(runs []*hostileRun) []string {
	seen := map[string]bool{}
	for _, r := range runs {
		for reason, n := range r.drops {
			if n > 0 {
				seen[reason] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
