// Package vswitch is the switch: workers that move bursts of frames through five stages, the tables that
// they read, and the slow path. ("switch" is a Go keyword.)
//
//	         ┌── *Snapshot (atomic.Pointer): generation, ports, networks; beside it the live FIB, Adjacencies, FDB, Neighbors, Flows
//	Port ─► recv ─► parse ─► lookup ─► act ─► send ─► Port      (encap.Tunnel is a Port: it decapsulates in Recv, encapsulates in Send)
//	        Burst   Parsed   verdict   rewrite  grouped by port
//	                   └────── punt (bounded, per-port quotas; drops and counts when full) ─► slow worker: learn, ARP/ND, ICMP
//
// One stage is one file, in this order: rx.go, parse.go, lookup.go, act.go, tx.go; worker.go has the loop.
// Beside lookup, guard.go holds a pod to what it was given, learn.go watches sources, limit.go has the shares of a port,
// bandwidth.go a pod's own limits, and track.go notes connections; fragment.go belongs to act. slow.go, icmp.go and
// probe.go are the slow path; snapshot.go, adjacency.go, switch.go, ports.go and tables.go are set-up; balance.go moves
// queues between workers; remember.go passes what was learned to the next process; view.go is for operators; prove.go shows
// that workers go round, and ledger.go that no frame is lost without a reason.
//
// # Networks
//
// A VNI is a network. One with a router MAC is routed, and its L2 segment ends at the node. One without is a
// segment only; if it is stretched, frames are flooded to the peers as well, one copy each (head-end
// replication), stations behind peers are learned, and nothing goes from peer to peer (split horizon).
//
// # Concurrency
//
// Each worker is a goroutine on a locked thread that owns its receive queues, its pool and its side of
// every transmit queue, and shares nothing that it writes. Control goroutines change tables under the
// switch's mutex, copy-on-write: they write the adjacency, then publish the route, then free what was
// replaced after every worker has passed a quiescent point (fib.Domain). A worker is quiescent between
// two bursts and offline while it waits for input, so that a sleeping worker holds nothing up. By the same
// points a receive queue changes hands without a frame overtaking another.
package vswitch
