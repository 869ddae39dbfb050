package vswitch

import (
	"net/netip"
	"time"

	"tapyard/switch/drop"
	"tapyard/switch/fdb"
	"tapyard/switch/flow"
	"tapyard/switch/neigh"
	"tapyard/switch/port"
)

// PortView is what an operator sees of a port.
type PortView struct {
	ID      port.ID
	Port    port.Port
	Role    Role
	VNI     uint32
	Workers []int // by receive queue: that owns it
	Rx, Tx  Count
	Drops   [drop.Count]Count

	RxBytes, TxBytes uint64

	// Examples are the last frame kept of each reason, over all workers; nil where there is none.
	Examples [drop.Count]*port.Example
}

// Ports returns the attached ports in the order of their IDs; the switch itself, ID 0, has a nil Port.
func (sw *Switch) Ports() []PortView {
	var views []PortView
	for _, ps := range sw.snapshot.Load().ports {
		if ps != nil {
			views = append(views, ps.view())
		}
	}
	return views
}

func (ps *portState) view() PortView {
	v := PortView{ID: ps.id, Port: ps.port, Role: ps.role, VNI: ps.vni}
	for q := range ps.polling {
		v.Workers = append(v.Workers, ps.polling[q].owner())
	}
	for i := range ps.stats {
		st := &ps.stats[i]
		v.Rx.add(&st.Rx)
		v.Tx.add(&st.Tx)
		v.RxBytes += st.RxBytes.Load()
		v.TxBytes += st.TxBytes.Load()
		for r := range st.Drops {
			v.Drops[r].add(&st.Drops[r])
			v.Examples[r] = later(v.Examples[r], st.Example(drop.Reason(r)))
		}
	}
	return v
}

// WorkerView is what an operator sees of a worker.
type WorkerView struct {
	ID      int
	Thread  int           // its number in the kernel, as top -H shows it; 0 before Start
	Queues  int           // receive queues that it polls
	Taken   uint64        // queues that it took over from other workers since the start
	Rx      Count         // that it received, from the ports that are attached now
	RxBytes uint64        // likewise
	CPU     time.Duration // that it used since the start
	Busy    float64       // share of the last half second, or less, in which it ran or waited for a core with work to do
}

// WorkerViews returns the workers in the order of their IDs, without the slow one.
func (sw *Switch) WorkerViews() []WorkerView {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	views := make([]WorkerView, len(sw.workers))
	for i, w := range sw.workers {
		v := &views[i]
		*v = WorkerView{ID: i, Thread: int(w.thread.Load()), Queues: sw.queues[i], Taken: sw.taken[i],
			CPU: w.cpu(), Busy: float64(w.busy.Load()) / 1000}
		for _, ps := range sw.snapshot.Load().ports {
			if ps != nil {
				v.Rx.add(&ps.stats[i].Rx)
				v.RxBytes += ps.stats[i].RxBytes.Load()
			}
		}
	}
	return views
}

// later returns the more recent of two examples, each of which may be nil.
func later(a, b *port.Example) *port.Example {
	if a == nil || b != nil && b.At > a.At {
		return b
	}
	return a
}

// RouteView is a route with what it leads to.
type RouteView struct {
	VNI       uint32
	Prefix    netip.Prefix
	Adjacency Adjacency
}

// Routes returns all routes, by VNI and prefix.
func (sw *Switch) Routes() []RouteView {
	sw.mu.Lock() // so that no adjacency is replaced meanwhile
	defer sw.mu.Unlock()
	var views []RouteView
	adjacencies := sw.adjacencies.view()
	for _, n := range sw.snapshot.Load().networks {
		for prefix, nh := range n.fib.All() {
			views = append(views, RouteView{n.VNI, prefix, adjacencies[nh]})
		}
	}
	return views
}

// Flows returns the connection table, nil if connections are not tracked.
func (sw *Switch) Flows() *flow.Table { return sw.snapshot.Load().flows }

// FDB returns the MAC table.
func (sw *Switch) FDB() []fdb.Entry { return sw.fdb.Entries() }

// Neighbors returns the addresses that the switch answers for.
func (sw *Switch) Neighbors() []neigh.Entry { return sw.neighbors.Entries() }
