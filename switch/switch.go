package vswitch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/fib"
	"tapyard/switch/fdb"
	"tapyard/switch/flow"
	"tapyard/switch/neigh"
	"tapyard/switch/port"
)

const (
	// maxLearned bounds learning: 8,192 stations are a large L2 segment, and about 1 MiB.
	maxLearned = 8192
	// maxLearnedPerPort is one pod's share: one that runs virtual machines or a bridge of its own has some
	// dozens of stations behind it. segmentLearned is that of an uplink, and of each peer.
	maxLearnedPerPort, segmentLearned = 256, 2048
	// DefaultAgeing is how long a station is remembered that sends nothing (IEEE 802.1Q section 8.8.3).
	DefaultAgeing = 300 * time.Second
)

// Config says how a switch runs.
type Config struct {
	Workers int           // at least 1
	Ageing  time.Duration // of learned stations; 0 keeps them until their port goes
	Rings   *port.Rings   // of the workers, or nil; for at least as many
	Log     *slog.Logger
	Now     func() time.Time // nil is time.Now
}

// Switch is one node's switch. Its methods may be called from any goroutine except a worker's.
type Switch struct {
	log       *slog.Logger
	now       func() time.Time
	domain    fib.Domain
	snapshot  atomic.Pointer[Snapshot]
	fdb       *fdb.Table
	neighbors *neigh.Table
	workers   []*worker
	slow      *slowWorker
	prepared  sync.WaitGroup // the workers' memory
	running   sync.WaitGroup // the workers and the balancer
	slowEnded sync.WaitGroup

	mu          sync.Mutex // serialises every change below
	adjacencies *adjacencies
	routes      map[uint32]map[netip.Prefix]fib.NextHop // by VNI
	queues      []int                                   // receive queues per worker
	taken       []uint64                                // queues that a worker took over from others
	departed    Ledger                                  // what detached ports counted
	leaving     map[port.ID]*portState                  // out of the Snapshot, but perhaps still in a worker's hands
	stopped     bool
	stopping    context.Context // done when Stop is called
	stop        context.CancelFunc
}

// New returns a switch with nothing attached, whose workers don't run before Start.
func New(cfg Config) (*Switch, error) {
	if cfg.Workers < 1 || cfg.Workers > MaxWorkers {
		return nil, fmt.Errorf("%d workers: at least 1, at most %d", cfg.Workers, MaxWorkers)
	}
	sw := &Switch{
		log: cfg.Log, now: cfg.Now, neighbors: neigh.New(),
		adjacencies: newAdjacencies(), routes: map[uint32]map[netip.Prefix]fib.NextHop{},
		queues: make([]int, cfg.Workers), taken: make([]uint64, cfg.Workers), leaving: map[port.ID]*portState{},
	}
	sw.stopping, sw.stop = context.WithCancel(context.Background())
	if sw.now == nil {
		sw.now = time.Now
	}
	sw.fdb = fdb.New(fdb.Config{MaxLearned: maxLearned, MaxLearnedPerPort: maxLearnedPerPort, Ageing: cfg.Ageing})
	local := &portState{id: port.Local, role: roleLocal, stats: make([]port.Stats, cfg.Workers+1), limits: make([]limits, cfg.Workers+1)}
	for w := range local.limits { // the switch itself has none
		local.limits[w] = limits{bum: newBucket(0), syn: newBucket(0), punt: newBucket(0)}
	}
	sw.snapshot.Store(&Snapshot{ports: []*portState{local}})
	for i := range cfg.Workers {
		w := newWorker(sw, i)
		if err := w.open(); err != nil { // a process without descriptors for its workers can only end
			return nil, fmt.Errorf("worker %d: %w", i, err)
		}
		sw.workers = append(sw.workers, w)
	}
	sw.slow = newSlowWorker(sw, cfg.Workers)
	for w := range local.stats {
		local.stats[w].Now = sw.clock(w)
	}
	if cfg.Rings != nil {
		for _, w := range sw.workers {
			sw.prepared.Go(func() { w.prepare(cfg.Rings) })
		}
	}
	return sw, nil
}

// prepare makes the worker's memory known to its ring. It takes the kernel 1 to 2 ms, in which a start does other things.
func (w *worker) prepare(rings *port.Rings) {
	if err := rings.UsePools(w.id, w.pool, w.segs.pool); err != nil {
		w.sw.log.Warn("frames are read and written more slowly", "worker", w.id, "error", err)
	}
}

// Start has the workers move frames. What is attached and routed before needs no order: frames wait in
// the kernel meanwhile, and none is refused for a route that is still to come.
func (sw *Switch) Start() {
	sw.prepared.Wait()
	for _, w := range sw.workers {
		sw.running.Go(w.run)
	}
	sw.running.Go(newBalancer(sw).run)
	sw.slowEnded.Go(sw.slow.run)
}

// MaxWorkers bounds Config.Workers: more than 64 threads that each send on every port would spend their
// time on each other.
const MaxWorkers = 64

// AddNetwork makes the VNI known; it must be there before the ports and routes in it.
func (sw *Switch) AddNetwork(n Network) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if n.VNI >= 1<<24 {
		return fmt.Errorf("VNI %d: at most %d (24 bits)", n.VNI, 1<<24-1)
	}
	snap := sw.snapshot.Load().clone()
	if snap.network(n.VNI) != nil {
		return fmt.Errorf("VNI %d is there already", n.VNI)
	}
	snap.networks = append(snap.networks, &network{Network: n, fib: fib.New(&sw.domain)})
	sw.routes[n.VNI] = map[netip.Prefix]fib.NextHop{}
	sw.publish(snap)
	return nil
}

func (sw *Switch) publish(snap *Snapshot) {
	snap.compile()
	sw.snapshot.Store(snap)
}

// SetMTU says how long the pods' packets are at most, in bytes: a longer one from a tunnel is a sender's
// super-frame. Before the first call, or with 0, none is.
func (sw *Switch) SetMTU(mtu int) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	snap := sw.snapshot.Load().clone()
	snap.mtu = mtu
	sw.publish(snap)
}

// SetFlows has the workers track connections, or forget them all and stop.
func (sw *Switch) SetFlows(on bool) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	snap := sw.snapshot.Load().clone()
	if on == (snap.flows != nil) {
		return
	}
	if snap.flows = nil; on {
		snap.flows = flow.New(flow.DefaultCapacity, maxPorts)
	}
	sw.publish(snap)
}

// SetFlood says which peers a stretched network reaches, by the indexes of the tunnel.
func (sw *Switch) SetFlood(vni uint32, peers []uint32) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	snap := sw.snapshot.Load().clone()
	net := snap.network(vni)
	if net == nil || !net.Stretched {
		return fmt.Errorf("flood list of VNI %d: no stretched network of this node", vni)
	}
	net.peers = slices.Clone(peers)
	sw.publish(snap)
	return nil
}

// Stop ends the workers when they have finished their bursts, then the slow worker when its queue is
// empty. It returns the ledger, which balances unless the switch has a bug. Ports stay open.
func (sw *Switch) Stop() (Ledger, error) {
	sw.stop() // before the lock, which the balancer may hold
	sw.mu.Lock()
	stopped := sw.stopped
	sw.stopped = true
	sw.mu.Unlock()
	if stopped {
		return Ledger{}, errors.New("the switch is stopped already")
	}
	var errs []error
	sw.prepared.Wait() // if it was never started
	for _, w := range sw.workers {
		errs = append(errs, w.wake(wakeToStop))
	}
	sw.running.Wait()
	close(sw.slow.stopping)
	sw.slowEnded.Wait()
	for _, w := range sw.workers {
		errs = append(errs, unix.Close(w.epoll), unix.Close(w.wakeFD))
	}
	return sw.Ledger(), errors.Join(errs...)
}

// open makes the worker's descriptors.
func (w *worker) open() (err error) {
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if w.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeID}
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, w.wakeFD, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}
