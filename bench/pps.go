package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	ppsTime   = 2 * time.Second
	ppsWarmUp = 300 * time.Millisecond
	ppsPort   = 5001

	// pacedRate is well below what one core of raw does (300,000 to 450,000 frames a second, DATAPATH.md),
	// so that every subject carries the same load and only its CPU time differs.
	pacedRate = 100_000
)

// scenario is a way to offer frames.
type scenario struct {
	name   string
	rate   int    // frames per second; 0 is as fast as the device takes them
	window int    // frames on their way at most; 0 is as many as the device takes
	flows  int    // that take turns frame by frame; 0 is one
	sizes  []int  // of frames, which take turns; nil is minFrame
	via    string // MAC that frames are sent to; "" is the receiver's
}

var ppsScenarios = []scenario{{name: "burst"}, {name: "paced", rate: pacedRate}}

// ppsMetrics are account.figures on one node, where the headline is what the switch itself uses.
var ppsMetrics = []metric{
	{name: "rate", long: "frames_per_second", unit: "frames/s"},
	{name: "", long: "frames_per_switch_cpu_second", unit: "frames per CPU second of the switch"},
	{name: "machine_cpu", long: "frames_per_machine_cpu_second", unit: "frames per CPU second of the machine, generator excluded"},
}

// PPS measures frames per second of 64-byte UDP frames of one flow between two pods on one node: as fast as
// the sender's device takes them ("burst"), and at a fixed load ("paced").
func PPS(ctx context.Context, cfg Config) (*Report, error) {
	return runBenchmark(ctx, cfg, func(ctx context.Context, s *session) ([]Row, error) {
		return s.sameNode(ctx, cfg.Peers, func(ctx context.Context) (rows []Row, err error) {
			for _, sc := range ppsScenarios {
				r, err := s.pps(ctx, sc)
				if err != nil {
					return nil, err
				}
				rows = append(rows, r...)
			}
			return rows, nil
		})
	})
}

// pps measures one scenario on one node.
func (s *session) pps(ctx context.Context, sc scenario) ([]Row, error) {
	return s.frames(ctx, "pps.samenode."+sc.name, sc, ppsMetrics)
}

// frames measures a scenario; the metrics are in the order of account.figures.
func (s *session) frames(ctx context.Context, base string, sc scenario, metrics []metric) ([]Row, error) {
	alone, err := s.generatorAlone(ctx, sc)
	if err != nil {
		return nil, fmt.Errorf("%s: the generator alone: %w", base, err)
	}
	for _, sub := range s.subjects {
		if _, err := s.offer(ctx, sub, sc, ppsWarmUp); err != nil {
			return nil, fmt.Errorf("%s: warm up %s: %w", base, sub.name(), err)
		}
	}
	return s.interleave(ctx, base, ofFrames(metrics, sc.sizes), func(ctx context.Context, sub subject) (values, error) {
		if p, ok := sub.(preparer); ok {
			if err := p.prepareRun(ctx, s); err != nil {
				return nil, err
			}
		}
		a, err := s.offer(ctx, sub, sc, ppsTime)
		if err != nil {
			return nil, err
		}
		if err := a.check(); err != nil {
			return nil, err
		}
		if sc.rate == 0 && sc.window == 0 && a.generator.Refused == 0 && a.dropped() == 0 {
			s.say("%s %s: its device was never full, so that the generator was the limit, not the switch; compare CPU time", base, sub.name())
		}
		s.sayDisturbed(base, sub, a.cpu.others(a.ends()), a.took)
		return a.figures(alone), nil
	})
}

// account is where the frames of a run went, and what that took.
type account struct {
	generator generatorResult
	sink      sinkResult
	subject   uint64       // dropped by the subject, which counts
	from, to  dropCounters // dropped by the kernel at the devices of both pods
	cpu       cpuUse
	at        time.Time     // of a reading
	took      time.Duration // between two readings
}

// maxStrays is how many drops may be of other frames than ours: the pods' kernels send router
// solicitations and multicast listener reports now and then, which may find a full ring too.
const maxStrays = 16

// check returns an *imbalance unless every frame that was sent was received once or counted as dropped.
func (a *account) check() error {
	missing := int64(a.generator.Sent) - int64(a.sink.Received) - a.dropped()
	if missing > 0 || missing < -maxStrays || a.sink.Duplicates > 0 {
		return &imbalance{fmt.Sprintf(
			"sent %d, received %d and %d of them twice, dropped: %d at the sender's device, %d by the switch, %d at the receiver's device, %d at its socket; %d unaccounted for",
			a.generator.Sent, a.sink.Received, a.sink.Duplicates, a.atSender(), a.subject, a.to.rx, a.sink.Overflowed, missing)}
	}
	if a.sink.Received == 0 {
		return errors.New("no frame arrived; 'tapyard show drops' names the reasons when the switch dropped them")
	}
	return nil
}

// dropped is how many frames of those sent somebody has counted as dropped.
func (a *account) dropped() int64 {
	return a.atSender() + int64(a.subject) + int64(a.to.rx) + int64(a.sink.Overflowed)
}

// atSender is how many were dropped at the sender's device. It counts an attempt that the generator knows to have
// failed as well, which was not sent.
func (a *account) atSender() int64 { return int64(a.from.tx) - int64(a.generator.Refused) }

// figures are the values of ppsMetrics; alone is the machine's CPU time for generating one frame. Where
// generating alone cost more than the whole run, one of the two was disturbed: not a number.
func (a *account) figures(alone float64) values {
	received := float64(a.sink.Received)
	machine := a.cpu.machineSeconds(a.ends(), a.took) - alone*float64(a.generator.Sent)
	if machine <= 0 {
		machine = math.NaN()
	}
	return values{received / a.sink.Took.Seconds(), received / a.cpu.switchSeconds(), received / machine}
}

// ends is the CPU time of the generator and the sink.
func (a *account) ends() time.Duration { return a.generator.CPU + a.sink.CPU }

// offer sends frames through the subject for the time given.
func (s *session) offer(ctx context.Context, sub subject, sc scenario, d time.Duration) (*account, error) {
	from, to := sub.pods()
	out := sc.generator(from, to, d)
	in := sinkSpec{Netns: netnsPath(to.netns), At: out.To, Run: out.Run, Flows: out.Flows}
	if out.Window > 0 {
		arrived, err := makeCounter(s.dir)
		if err != nil {
			return nil, err
		}
		defer os.Remove(arrived)
		in.Arrived, out.Arrived = arrived, arrived
	}
	snk, err := startWorker(ctx, s.exe, verbSink, in, to.cpus)
	if err != nil {
		return nil, err
	}
	defer snk.abandon()
	gen, err := startWorker(ctx, s.exe, verbGenerate, out, from.cpus)
	if err != nil {
		return nil, err
	}
	defer gen.abandon()
	before, err := readAccount(ctx, sub)
	if err != nil {
		return nil, err
	}
	a := new(account)
	if err := errors.Join(gen.release(), gen.collect(&a.generator), snk.release(), snk.collect(&a.sink)); err != nil {
		return nil, err
	}
	after, err := readAccount(ctx, sub)
	if err != nil {
		return nil, err
	}
	a.settle(before, after)
	return a, nil
}

// generator is what sends for the time given, with a run's number of its own.
func (sc scenario) generator(from, to pod, d time.Duration) generatorSpec {
	return generatorSpec{
		Netns: netnsPath(from.netns), Device: podDevice, ToMAC: cmp.Or(sc.via, to.mac.String()),
		From: netip.AddrPortFrom(from.addr, firstFlowPort), To: netip.AddrPortFrom(to.addr, ppsPort),
		Flows: sc.flows, Frame: minFrame, Mix: sc.sizes, Rate: sc.rate, Window: sc.window, Run: rand.Uint64(), Time: d,
	}
}

// readAccount reads the counters that run on from one run to the next.
func readAccount(ctx context.Context, sub subject) (*account, error) {
	from, to := sub.pods()
	var a account
	var err [4]error
	a.cpu, err[0] = readCPU(sub.pids()...)
	a.at = time.Now()
	a.from, err[1] = from.kernelDrops()
	a.to, err[2] = to.kernelDrops()
	a.subject, err[3] = sub.drops(ctx)
	return &a, errors.Join(err[:]...)
}

// settle fills in what the counters gained between two readings.
func (a *account) settle(before, after *account) {
	a.cpu = after.cpu.since(before.cpu)
	a.took = after.at.Sub(before.at)
	a.subject = after.subject - before.subject
	a.from = after.from.since(before.from)
	a.to = after.to.since(before.to)
}

func (d dropCounters) since(before dropCounters) dropCounters {
	return dropCounters{rx: d.rx - before.rx, tx: d.tx - before.tx}
}

// generatorAlone measures the machine's CPU time for generating one frame, in seconds, with a device that
// swallows everything. It is NaN on a kernel without such a device.
func (s *session) generatorAlone(ctx context.Context, sc scenario) (float64, error) {
	void := pod{netns: benchPrefix + "void", addr: netip.MustParseAddr("10.244.1.3")}
	if err := makeNetns(void.netns); err != nil {
		return 0, err
	}
	defer deleteNetns(void.netns)
	if err := inNetns(void.netns, addVoid); err != nil {
		s.say("no figures of the machine's CPU time: %v", err)
		return math.NaN(), nil
	}
	if err := void.readMAC(); err != nil {
		return 0, err
	}
	sc.window = 0 // nothing arrives
	gen, err := startWorker(ctx, s.exe, verbGenerate, sc.generator(void, void, ppsTime), s.load)
	if err != nil {
		return 0, err
	}
	defer gen.abandon()
	before, err := readCPU()
	if err != nil {
		return 0, err
	}
	var result generatorResult
	if err := errors.Join(gen.release(), gen.collect(&result)); err != nil {
		return 0, err
	}
	after, err := readCPU()
	if err != nil {
		return 0, err
	}
	return after.since(before).machineSeconds(result.CPU, result.Took) / float64(result.Sent), nil
}

// addVoid makes a device that drops what it is given: dummy, or ifb, which does so with frames that no
// traffic control sent to it.
func addVoid() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = podDevice
	if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
		if e := netlink.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); e != nil {
			return fmt.Errorf("the kernel has neither dummy (%w) nor ifb devices (%w)", err, e)
		}
	}
	return raise(podDevice)
}
