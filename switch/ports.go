package vswitch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

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
	ps := &portState{id: id, port: p, role: cfg.Role, vni: cfg.VNI, rx: p.Rx(), polling: make([]polling, len(p.Rx())),
		sent: newMeter(cfg.Sent), received: newMeter(cfg.Received),
		stats: make([]port.Stats, len(sw.workers)+1), limits: make([]limits, len(sw.workers)+1),
		errors: newBucket(transitErrors), tooBig: newBucket(transitErrors)}
	ps.guard.Store(newGuard(cfg.Guard))
	punts := transitPunts
	if ps.single = cfg.Role == RoleAccess && !cfg.Segment; ps.single {
		punts, ps.errors = accessPunts, newBucket(icmpErrors)
	} else {
		sw.fdb.SetPortLimit(id, segmentLearned)
	}
	fresh := func() limits { return limits{bum: newBucket(cfg.BUM), syn: newBucket(cfg.SYN), punt: newBucket(punts)} }
	shared := fresh()
	for w := range ps.stats {
		if ps.limits[w] = shared; !ps.single {
			ps.limits[w] = fresh()
		}
		ps.stats[w].Now = sw.clock(w)
		ps.tx = append(ps.tx, p.Tx(w, &ps.stats[w]))
	}
	return ps
}

// Configure changes PortConfig.Guard and BUM of a port; its workers obey from the next burst on.
func (sw *Switch) Configure(id port.ID, guard *Station, bum int) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	ps := sw.snapshot.Load().port(id)
	if ps == nil || id == port.Local {
		return fmt.Errorf("configure port %d: no such port", id)
	}
	ps.guard.Store(newGuard(guard))
	for w := range ps.limits {
		ps.limits[w].bum.setRate(bum)
	}
	return nil
}

// SetAgeing changes Config.Ageing.
func (sw *Switch) SetAgeing(d time.Duration) { sw.fdb.SetAgeing(d) }

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
	first := slices.Index(sw.queues, slices.Min(sw.queues))
	for q, rx := range ps.rx {
		n := (first + q) % len(sw.workers)
		ps.polling[q].worker.Store(int32(n))
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
		n := ps.polling[q].owner()
		sw.queues[n]--
		// A worker has done it already for a device that was deleted.
		_ = unix.EpollCtl(sw.workers[n].epoll, unix.EPOLL_CTL_DEL, rx.FD(), nil)
	}
	ps.polled = 0
}

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
	if snap.flows != nil {
		snap.flows.DropOwner(uint16(id))
	}
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
