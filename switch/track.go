package vswitch

import (
	"tapyard/switch/flow"
	"tapyard/switch/port"
)

// A pod may have an eighth of the connection table, 32,768 flows that it began: as many as it has ephemeral ports
// towards one server (28,232, net.ipv4.ip_local_port_range). The host, a tunnel and an uplink stand for many
// stations and have half of it each.
const podFlows, transitFlows = flow.DefaultCapacity / 8, flow.DefaultCapacity / 2

// track is the end of lookup: it notes the connections of those frames that have a way out. What is dropped or
// answered by the switch begins none, nor does what is flooded, whose receiver nobody knows.
//
// The table only watches. It could also remember what lookup decides: but a hit costs 13 ns where all of lookup
// costs some 25, the source guard and learning included, which stay; and all writers of FDB, FIB, adjacencies and
// peers would have to invalidate what it remembers.
func (w *worker) track() {
	if w.in.id == port.Local {
		return
	}
	for i, f := range w.burst.Frames() {
		switch w.verdicts[i].kind {
		case Forward, Route, Fragment:
			w.tracked.Add(f.VNI, f.Bytes(), &w.parsed[i])
		}
	}
	w.snap.flows.Track(w.tracked, w.now, flow.Owner{ID: uint16(w.in.id), Share: w.in.flows()})
}

// flows returns the port's share of the table.
func (ps *portState) flows() int {
	if ps.single {
		return podFlows
	}
	return transitFlows
}
