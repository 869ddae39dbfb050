package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/observe"
)

// workersLab is an agent with a number of workers, and pods.
type workersLab struct {
	agentNode
	workers int
	queues  int // of each pod
	pods    []*pod
}

// String tells the lab from the one beside it.
func (l *workersLab) String() string {
	switch {
	case l.workers == 1:
		return "one worker"
	case l.queues == 1:
		return fmt.Sprintf("%d workers", l.workers)
	}
	return fmt.Sprintf("%d workers and %d queues a pod", l.workers, l.queues)
}

// startWorkersLab starts an agent and attaches pods to it, with queues each. The caller must close the lab, also after
// an error.
func (s *session) startWorkersLab(ctx context.Context, workers, queues, pods int) (*workersLab, error) {
	dir, err := s.folder()
	name := fmt.Sprintf("%sw%dq%d", benchPrefix, workers, queues)
	load, forward := s.workersCPUs()
	l := &workersLab{workers: workers, queues: queues, agentNode: agentNode{name: "bench", netns: name, cpus: forward, underlay: agentUnderlay,
		subnets: []string{podPrefix}, dir: dir, more: map[string]any{"workers": workers, "podQueues": queues}}}
	if err != nil {
		return l, err
	}
	if err := makeNetns(l.netns); err != nil {
		return l, err
	}
	if err := inNetns(l.netns, addUnderlay); err != nil {
		return l, err
	}
	if err := l.agentNode.start(ctx, s); err != nil {
		return l, err
	}
	for i := range pods {
		p := &pod{netns: fmt.Sprintf("%s-pod-%d", name, i+1), cpus: load}
		l.pods = append(l.pods, p)
		if err := l.attach(ctx, p); err != nil {
			return l, err
		}
	}
	return l, nil
}

// workersCPUs are all CPUs for everything on a machine on which two workers, the generators and the sinks can't have
// cores of their own.
func (s *session) workersCPUs() (load, forward unix.CPUSet) {
	load, forward = s.load, s.forward
	if runtime.NumCPU() < workersCores {
		for i := range load {
			load[i] |= forward[i]
		}
		forward = load
	}
	return load, forward
}

func (l *workersLab) close() error {
	names := []string{l.netns}
	for _, p := range l.pods {
		names = append(names, p.netns)
	}
	return errors.Join(l.agentNode.close(), deleteNetns(names...))
}

func (l *workersLab) client() observe.Client { return observe.Client{Socket: l.socket("admin.sock")} }

// workersPair is one of the pairs of pods, as a subject.
type workersPair struct {
	*workersLab
	from, to pod
	ports    map[string]bool // by name, of both pods
}

func (p *workersPair) name() string         { return "tapyard" }
func (p *workersPair) pods() (from, to pod) { return p.from, p.to }
func (p *workersPair) pids() []int          { return []int{p.proc.pid()} }

// drops adds up those of the pair's own ports.
func (p *workersPair) drops(ctx context.Context) (sum uint64, err error) {
	var rows []observe.Drop
	if err := p.client().Get(ctx, "drops", &rows); err != nil {
		return 0, err
	}
	for _, r := range rows {
		if p.ports[r.Port] {
			sum += r.WireFrames
		}
	}
	return sum, nil
}

func (l *workersLab) portsByMAC(ctx context.Context) (map[string]observe.Port, error) {
	var ports []observe.Port
	err := l.client().Get(ctx, "ports", &ports)
	byMAC := map[string]observe.Port{}
	for _, p := range ports {
		byMAC[p.MAC] = p
	}
	return byMAC, err
}

// pairs makes two pairs of the pods. Their senders are two that are on one worker now, so that the balancer has
// something to do.
func (l *workersLab) pairs(ctx context.Context) (pairs [2]*workersPair, err error) {
	byMAC, err := l.portsByMAC(ctx)
	if err != nil {
		return pairs, err
	}
	on := map[int][]*pod{} // by worker
	var senders, receivers []*pod
	for _, p := range l.pods {
		worker := byMAC[p.mac.String()].Worker
		if on[worker] = append(on[worker], p); len(on[worker]) == 2 && senders == nil {
			senders = on[worker]
		}
	}
	for _, p := range l.pods {
		if p != senders[0] && p != senders[1] {
			receivers = append(receivers, p)
		}
	}
	for i := range pairs {
		pairs[i] = l.pair(senders[i], receivers[i], byMAC)
	}
	return pairs, nil
}

func (l *workersLab) pair(from, to *pod, byMAC map[string]observe.Port) *workersPair {
	return &workersPair{workersLab: l, from: *from, to: *to,
		ports: map[string]bool{byMAC[from.mac.String()].Name: true, byMAC[to.mac.String()].Name: true}}
}

// offerPairs has both pairs send at once, as fast as their devices take it.
func (s *session) offerPairs(ctx context.Context, l *workersLab, d time.Duration) (*workersRun, error) {
	pairs, err := l.pairs(ctx)
	if err != nil {
		return nil, err
	}
	return s.offerAll(ctx, l, pairs[:], scenario{name: "burst"}, d)
}

// offerAll offers the scenario to all pairs at once.
func (s *session) offerAll(ctx context.Context, l *workersLab, pairs []*workersPair, sc scenario, d time.Duration) (*workersRun, error) {
	before, err := l.readWorkers(ctx)
	if err != nil {
		return nil, err
	}
	accounts, errs := make([]*account, len(pairs)), make([]error, len(pairs))
	done := make(chan struct{})
	for i, p := range pairs {
		go func() {
			defer func() { done <- struct{}{} }()
			if accounts[i], errs[i] = s.offer(ctx, p, sc, d); errs[i] == nil {
				errs[i] = accounts[i].check()
			}
		}()
	}
	for range pairs {
		<-done
	}
	after, err := l.readWorkers(ctx)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	run := &workersRun{moves: after.moves - before.moves, frames: smallestPart(before.frames, after.frames), cpu: smallestPart(before.cpu, after.cpu)}
	for _, a := range accounts {
		run.received += a.sink.Received
		run.reordered += a.sink.Reordered
		run.rate += float64(a.sink.Received) / a.sink.Took.Seconds()
	}
	return run, nil
}

// workersReading is what each worker has done so far.
type workersReading struct {
	frames []uint64 // received
	cpu    []uint64 // nanoseconds, as the kernel says
	moves  uint64
}

func (l *workersLab) readWorkers(ctx context.Context) (r workersReading, err error) {
	var workers []observe.Worker
	if err := l.client().Get(ctx, "workers", &workers); err != nil {
		return r, err
	}
	for _, w := range workers {
		ns, err := threadCPU(l.proc.pid(), w.Thread)
		if err != nil {
			return r, err
		}
		r.frames, r.cpu, r.moves = append(r.frames, w.Rx.Frames), append(r.cpu, ns), r.moves+w.Taken
	}
	return r, nil
}

// threadCPU returns the CPU time that another process's thread has used, in nanoseconds.
func threadCPU(pid, thread int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, thread))
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of a worker: %w", err)
	}
	used, _, _ := strings.Cut(string(stat), " ")
	return strconv.ParseUint(used, 10, 64)
}

const (
	idlePods = 100
	idleSpan = 10 * time.Second
	// idleQuiet without a frame means that the pods' kernels have reported their multicast groups: they do so twice,
	// up to a second apart (RFC 3810 section 9.11).
	idleQuiet, idlePatience = 3 * time.Second, time.Minute
)

// idleWorkers measures what an agent costs whose pods don't send.
func (s *session) idleWorkers(ctx context.Context) (rows []Row, err error) {
	l, err := s.startWorkersLab(ctx, 2, 1, idlePods)
	defer func() { err = errors.Join(err, l.close()) }()
	if err != nil {
		return nil, err
	}
	if err := l.solicitNoRouters(); err != nil {
		return nil, err
	}
	if err := l.awaitQuiet(ctx); err != nil {
		return nil, err
	}
	workers, err := l.readWorkers(ctx)
	if err != nil {
		return nil, err
	}
	cpu, err := processCPU(l.proc.pid())
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, idleSpan); err != nil {
		return nil, err
	}
	cpuAfter, err := processCPU(l.proc.pid())
	if err != nil {
		return nil, err
	}
	after, err := l.readWorkers(ctx)
	if err != nil {
		return nil, err
	}
	percent := func(name string, d time.Duration) Row {
		v := 100 * d.Seconds() / idleSpan.Seconds()
		return Row{Name: name, Unit: fmt.Sprintf("%% of a core with %d idle pods", idlePods), Value: v, Low: v, High: v}
	}
	var threads, frames uint64
	for i := range after.cpu {
		threads += after.cpu[i] - workers.cpu[i]
		frames += after.frames[i] - workers.frames[i]
	}
	return []Row{
		percent("workers.idle.threads", time.Duration(threads)),
		percent("workers.idle.agent", cpuAfter-cpu),
		{Name: "workers.idle.frames", Unit: "frames that the kernel sent meanwhile", Value: float64(frames), Low: float64(frames), High: float64(frames)},
	}, nil
}

// solicitNoRouters ends the kernel's search for IPv6 routers in the pods and on the node, which it repeats for
// ever, an hour apart in the end (RFC 7559); each question is flooded to all pods.
func (l *workersLab) solicitNoRouters() error {
	off := func(device string) func() error {
		return func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/router_solicitations", []byte("0"), 0)
		}
	}
	err := inNetns(l.netns, off("tapyard0"))
	for _, p := range l.pods {
		err = errors.Join(err, inNetns(p.netns, off(podDevice)))
	}
	return err
}

// awaitQuiet waits until no pod has sent for a while.
func (l *workersLab) awaitQuiet(ctx context.Context) error {
	var last uint64
	since := time.Now()
	for deadline := time.Now().Add(idlePatience); time.Now().Before(deadline); {
		r, err := l.readWorkers(ctx)
		if err != nil {
			return err
		}
		if n := r.frames[0] + r.frames[1]; n != last {
			last, since = n, time.Now()
		}
		if time.Since(since) > idleQuiet {
			return nil
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("pods that nobody uses still send after %v", idlePatience)
}
