package bench

import (
	"fmt"
	"strings"
)

// floorPairs is how many pairs of runs a floor is judged by, at least: the lower quartile of nine is the third
// lowest, which two disturbed runs don't reach.
const floorPairs = 9

// floors are what the lower quartile of a row's ratios has to reach.
var floors = map[string]float64{
	"pps.samenode.burst.raw":      2,
	"pps.samenode.burst.ovs":      4,
	"pps.samenode.flows.raw":      1,
	"pps.samenode.flows.ovs":      1.7,
	"pps.crossnode.burst.vxlan":   1.5,
	"pps.crossnode.burst.ovs":     4,
	"tcp.samenode.raw":            0.95,
	"tcp.samenode.bridge":         0.55,
	"tcp.crossnode.vxlan":         0.8,
	"tcp.crossnode.ovs":           12,
	"tcp.crossnode.plain.vxlan":   0.45,
	"cpu.crossnode.vxlan":         0.7,
	"latency.samenode.p50.bridge": 0.5,
	"latency.samenode.p99.bridge": 0.5,
	"scale":                       0.87,
}

// Rows of nodes whose underlay has no offloads have this word before the peer's name, and a share of the other
// row's floor.
const (
	withoutOffloads      = ".nooffload"
	withoutOffloadsShare = 0.8
)

// floorOf returns a row's floor, or 0.
func floorOf(name string) float64 {
	if with := strings.Replace(name, withoutOffloads, "", 1); with != name {
		return withoutOffloadsShare * floors[with]
	}
	return floors[name]
}

// judge says of the rows that have a floor whether it holds.
func judge(rows []Row) {
	for i := range rows {
		row := &rows[i]
		if row.Holds != nil {
			continue // its group knows better
		}
		if row.Floor = floorOf(row.Name); row.Floor > 0 {
			holds := row.Pairs >= floorPairs && row.Low >= row.Floor
			row.Holds = &holds
		}
	}
}

// verdict is what the table for people says of a row's floor.
func (r *Row) verdict() string {
	switch {
	case r.Holds == nil:
		return ""
	case r.Floor == 0 && *r.Holds:
		return ", holds"
	case r.Floor == 0:
		return ", MISSED"
	case *r.Holds:
		return fmt.Sprintf(", floor %.3g holds", r.Floor)
	case r.Low >= r.Floor:
		return fmt.Sprintf(", floor %.3g reached in %d pairs of %d", r.Floor, r.Pairs, floorPairs)
	}
	return fmt.Sprintf(", floor %.3g MISSED", r.Floor)
}
