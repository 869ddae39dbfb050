package vswitch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/fib"
	"tapyard/switch/fdb"
	"tapyard/switch/neigh"
	"tapyard/switch/port"
	"tapyard/switch/wire"
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
	running   sync.WaitGroup // the workers
	slowEnded sync.WaitGroup

	mu          sync.Mutex // serialises every change below
	adjacencies *adjacencies
	routes      map[uint32]map[netip.Prefix]fib.NextHop // by VNI
	queues      []int                                   // receive queues per worker
	departed    Ledger                                  // what detached ports counted
	leaving     map[port.ID]*portState                  // out of the Snapshot, but perhaps still in a worker's hands
	stopped     bool
}

// New returns a switch with nothing attached, whose workers don't run before Start.
func New(cfg Config) (*Switch, error) {
	if cfg.Workers < 1 || cfg.Workers > MaxWorkers {
		return nil, fmt.Errorf("%d workers: at least 1, at most %d", cfg.Workers, MaxWorkers)
	}
	sw := &Switch{
		log: cfg.Log, now: cfg.Now, neighbors: neigh.New(),
		adjacencies: newAdjacencies(), routes: map[uint32]map[netip.Prefix]fib.NextHop{},
		queues: make([]int, cfg.Workers), leaving: map[port.ID]*portState{},
	}
	if sw.now == nil {
		sw.now = time.Now
	}
	sw.fdb = fdb.New(fdb.Config{MaxLearned: maxLearned, MaxLearnedPerPort: maxLearnedPerPort, Ageing: cfg.Ageing})
	local := &portState{id: port.Local, role: roleLocal, stats: make([]port.Stats, cfg.Workers+1), limits: make([]limits, cfg.Workers+1)}
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
	return sw, nil
}

// Start has the workers move frames. What is attached and routed before needs no order: frames wait in
// the kernel meanwhile, and none is refused for a route that is still to come.
func (sw *Switch) Start() {
	for _, w := range sw.workers {
		sw.running.Go(w.run)
	}
	sw.slowEnded.Go(sw.slow.run)
}

// MaxWorkers bounds Config.Workers: more than 64 threads that each send on every port would spend their
// time on each other.
const MaxWorkers = 64

// Workers returns the number of workers, without the slow one.
func (sw *Switch) Workers() int { return len(sw.workers) }

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

// Attach connects a port and returns its ID.
func (sw *Switch) Attach(p port.Port, cfg PortConfig) (port.ID, error) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	snap := sw.snapshot.Load().clone()
	if cfg.Role != RoleTunnel && snap.network(cfg.VNI) == nil {
		return 0, fmt.Errorf("attach port %s: VNI %d is not configured", p.Name(), cfg.VNI)
	}
	for _, other := range snap.ports[1:] {
		if other != nil && other.port.Name() == p.Name() {
			return 0, fmt.Errorf("attach port %s: a port of that name is attached already", p.Name())
		}
	}
	id, err := sw.freeID(snap)
	if err != nil {
		return 0, fmt.Errorf("attach port %s: %w", p.Name(), err)
	}
	// Workers ignore the events of a port that they don't know yet.
	ps := sw.newPortState(id, p, cfg)
	if err := sw.poll(ps); err != nil {
		sw.unpoll(ps)
		return 0, fmt.Errorf("attach port %s: %w", p.Name(), err)
	}
	if int(id) == len(snap.ports) {
		snap.ports = append(snap.ports, nil)
	}
	snap.ports[id] = ps
	sw.publish(snap)
	return id, nil
}

func (sw *Switch) newPortState(id port.ID, p port.Port, cfg PortConfig) *portState {
	ps := &portState{id: id, port: p, role: cfg.Role, vni: cfg.VNI, rx: p.Rx(), guard: newGuard(cfg.Guard),
		stats: make([]port.Stats, len(sw.workers)+1), limits: make([]limits, len(sw.workers)+1),
		errors: newBucket(transitErrors), tooBig: newBucket(transitErrors)}
	punts := transitPunts
	if ps.single = cfg.Role == RoleAccess && !cfg.Segment; ps.single {
		punts, ps.errors = accessPunts, newBucket(icmpErrors)
	} else {
		sw.fdb.SetPortLimit(id, segmentLearned)
	}
	for w := range ps.stats {
		ps.limits[w] = limits{bum: newBucket(cfg.BUM), syn: newBucket(cfg.SYN), punt: newBucket(punts)}
		ps.stats[w].Now = sw.clock(w)
		ps.tx = append(ps.tx, p.Tx(w, &ps.stats[w]))
	}
	ps.worker = slices.Index(sw.queues, slices.Min(sw.queues))
	return ps
}

// clock returns the clock of the worker with that index, the slow one last.
func (sw *Switch) clock(id int) *int64 {
	if id == len(sw.workers) {
		return &sw.slow.now
	}
	return &sw.workers[id].now
}

// poll gives each receive queue to a worker: the first to the one with the fewest, the others to its
// neighbours.
func (sw *Switch) poll(ps *portState) error {
	for q, rx := range ps.rx {
		n := ps.queueWorker(q, len(sw.workers))
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(ps.id), Pad: int32(q)}
		if err := unix.EpollCtl(sw.workers[n].epoll, unix.EPOLL_CTL_ADD, rx.FD(), &ev); err != nil {
			return fmt.Errorf("poll queue %d: %w", q, err)
		}
		sw.queues[n]++
		ps.polled++
	}
	return nil
}

// unpoll takes back what poll did.
func (sw *Switch) unpoll(ps *portState) {
	for q, rx := range ps.rx[:ps.polled] {
		n := ps.queueWorker(q, len(sw.workers))
		sw.queues[n]--
		// A worker has done it already for a device that was deleted.
		_ = unix.EpollCtl(sw.workers[n].epoll, unix.EPOLL_CTL_DEL, rx.FD(), nil)
	}
	ps.polled = 0
}

func (ps *portState) queueWorker(queue, workers int) int { return (ps.worker + queue) % workers }

// Detach disconnects the port, which the caller then closes or removes: no worker touches it any more.
// Its counters stay in the ledger. After an error the port is not free of workers; Detach may be called
// again, and until it succeeds the ID is not reused.
func (sw *Switch) Detach(ctx context.Context, id port.ID) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	snap := sw.snapshot.Load().clone()
	ps := snap.port(id)
	switch {
	case id == port.Local || ps == nil && sw.leaving[id] == nil:
		return fmt.Errorf("detach port %d: no such port", id)
	case ps != nil:
		sw.unpoll(ps)
		snap.ports[id] = nil
		sw.leaving[id] = ps
		sw.publish(snap)
	}
	ps = sw.leaving[id]
	if err := sw.drain(ctx, ps); err != nil {
		return fmt.Errorf("detach port %s: %w", ps.port.Name(), err)
	}
	// Only now: what the slow path had queued may have taught it the port's MACs once more.
	sw.fdb.DeletePort(id)
	sw.neighbors.DeletePort(id)
	sw.departed.add(ps)
	delete(sw.leaving, id)
	return nil
}

// drain waits until no worker can hold ps, and the slow path has nothing of it left.
func (sw *Switch) drain(ctx context.Context, ps *portState) error {
	if err := sw.domain.Wait(ctx); err != nil {
		return err
	}
	for !ps.quota.empty() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the slow path still has its frames: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// RouteChange sets a route, or deletes it when Adjacency is nil.
type RouteChange struct {
	Prefix    netip.Prefix
	Adjacency *Adjacency
}

// UpdateRoutes applies the changes to a VNI's table all or nothing; the frames of a burst that follow each
// other in one VNI see all of them or none.
func (sw *Switch) UpdateRoutes(vni uint32, changes []RouteChange) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	net := sw.snapshot.Load().network(vni)
	if net == nil {
		return fmt.Errorf("routes of VNI %d: not configured", vni)
	}
	routes := sw.routes[vni]
	staged := make(map[netip.Prefix]fib.NextHop, len(changes))
	undo := func(err error) error {
		sw.release(slices.Collect(maps.Values(staged)))
		return fmt.Errorf("routes of VNI %d: %w", vni, err)
	}
	edits := make([]fib.Change, 0, len(changes))
	for _, c := range changes {
		if _, twice := staged[c.Prefix]; twice {
			return undo(fmt.Errorf("%s occurs twice in one change", c.Prefix))
		}
		nh := fib.None
		if c.Adjacency != nil {
			var err error
			if nh, err = sw.adjacencies.acquire(*c.Adjacency); err != nil {
				return undo(err)
			}
		}
		staged[c.Prefix] = nh
		edits = append(edits, fib.Change{Prefix: c.Prefix, NextHop: nh, Delete: nh == fib.None})
	}
	if err := net.fib.Apply(edits); err != nil {
		return undo(err)
	}
	sw.commit(routes, staged)
	return nil
}

// commit notes the staged next hops, None for a deleted route, and lets go of those that they replace.
func (sw *Switch) commit(routes, staged map[netip.Prefix]fib.NextHop) {
	var replaced []fib.NextHop
	for prefix, nh := range staged {
		replaced = append(replaced, routes[prefix])
		if nh == fib.None {
			delete(routes, prefix)
		} else {
			routes[prefix] = nh
		}
	}
	sw.release(replaced)
}

// release lets go of next hops. What the domain then runs is ours alone, under the mutex that every user
// of the domain holds.
func (sw *Switch) release(hops []fib.NextHop) {
	for _, nh := range hops {
		sw.adjacencies.release(nh, sw.domain.Retire)
	}
	sw.domain.Reclaim()
}

// AddStation makes a station known: its MAC and addresses, static, behind the port. What is another one's
// already is refused with the names of both ports, and fdb.ErrConflict or neigh.ErrConflict.
func (sw *Switch) AddStation(vni uint32, id port.ID, mac wire.MAC, addrs []netip.Addr) error {
	if err := sw.fdb.Insert(vni, mac, port.Dest{Port: id}); err != nil {
		return sw.nameBoth(id, err)
	}
	if err := sw.AddNeighbors(vni, id, mac, addrs); err != nil {
		return err
	}
	for _, a := range addrs {
		select {
		case sw.slow.arrivals <- arrival{vni, id, mac, a}:
		default: // more at once than a node has pods: their neighbours' entries mend themselves
		}
	}
	return nil
}

// AddNeighbors has the switch answer ARP and neighbour solicitations for the addresses with mac, except
// to the port that they are behind. Errors are AddStation's.
func (sw *Switch) AddNeighbors(vni uint32, id port.ID, mac wire.MAC, addrs []netip.Addr) error {
	for _, a := range addrs {
		if err := sw.neighbors.Insert(vni, a, neigh.Neighbor{MAC: mac, Port: id}); err != nil {
			return sw.nameBoth(id, err)
		}
	}
	return nil
}

// nameBoth says whose a MAC or an address is already; the tables know ports by number.
func (sw *Switch) nameBoth(claimant port.ID, err error) error {
	if c := (*fdb.ConflictError)(nil); errors.As(err, &c) {
		return fmt.Errorf("MAC %s of %s: it is that of %s already, in VNI %d: %w", c.MAC, sw.nameOf(claimant), sw.nameOf(c.Owner.Port), c.VNI, fdb.ErrConflict)
	}
	if c := (*neigh.ConflictError)(nil); errors.As(err, &c) {
		return fmt.Errorf("address %s of %s: it is that of %s already, in VNI %d: %w", c.Addr, sw.nameOf(claimant), sw.nameOf(c.Owner.Port), c.VNI, neigh.ErrConflict)
	}
	return fmt.Errorf("%s: %w", sw.nameOf(claimant), err)
}

// nameOf returns the name of a port, for messages.
func (sw *Switch) nameOf(id port.ID) string {
	ps := sw.snapshot.Load().port(id)
	switch {
	case id == port.Local:
		return "the switch"
	case ps == nil:
		return "a port that is gone"
	}
	return ps.port.Name()
}

// ForgetPeer removes what was learned behind a peer of a tunnel.
func (sw *Switch) ForgetPeer(tunnel port.ID, peer uint32) { sw.fdb.DeletePeer(tunnel, peer) }

// Stop ends the workers when they have finished their bursts, then the slow worker when its queue is
// empty. It returns the ledger, which balances unless the switch has a bug. Ports stay open.
func (sw *Switch) Stop() (Ledger, error) {
	sw.mu.Lock()
	stopped := sw.stopped
	sw.stopped = true
	sw.mu.Unlock()
	if stopped {
		return Ledger{}, errors.New("the switch is stopped already")
	}
	var errs []error
	for _, w := range sw.workers {
		errs = append(errs, w.stop())
	}
	sw.running.Wait()
	close(sw.slow.stopping)
	sw.slowEnded.Wait()
	for _, w := range sw.workers {
		errs = append(errs, unix.Close(w.epoll), unix.Close(w.stopFD))
	}
	return sw.Ledger(), errors.Join(errs...)
}

// open makes the worker's descriptors.
func (w *worker) open() (err error) {
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if w.stopFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: stopID}
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, w.stopFD, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// stop wakes the worker with an event that tells it to end.
func (w *worker) stop() error {
	one := binary.NativeEndian.AppendUint64(nil, 1)
	if _, err := unix.Write(w.stopFD, one); err != nil {
		return fmt.Errorf("stop worker %d: %w", w.id, err)
	}
	return nil
}
