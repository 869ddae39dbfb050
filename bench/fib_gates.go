package bench

import (
	"cmp"
	"fmt"
	"slices"
)

// gate is a row that compares. The names of rows have %s where the assignment of next hops belongs; where there
// are several of theirs, the fastest counts.
type gate struct {
	name   string
	ours   string
	theirs []gatePeer
}

type gatePeer struct{ peer, row string }

var fibGates = []gate{
	{"ipv4.random.single", "ipv4.random.single.%s.all.tapyard", bartPeer("ipv4.random")},
	{"ipv4.random.batch", "ipv4.random.batch.%s.all.tapyard", bartPeer("ipv4.random")},
	{"ipv6.random.single", "ipv6.random.single.%s.all.tapyard", bartPeer("ipv6.random")},
	{"ipv6.random.batch", "ipv6.random.batch.%s.all.tapyard", bartPeer("ipv6.random")},
	{"ipv4.dependent", "ipv4.dependent.single.%s.all.tapyard", bartPeer("ipv4.dependent")},
	{"ipv6.dependent", "ipv6.dependent.single.%s.all.tapyard", bartPeer("ipv6.dependent")},
	{"ipv4.small", "ipv4.random.single.%s.10.tapyard", []gatePeer{{"bart.Lite", "ipv4.random.single.%s.10.bart-lite"}}},
	{"ipv4.single.rte_lpm", "ipv4.random.single.%s.all.tapyard",
		[]gatePeer{{"rte_lpm", "ipv4.random.single.%s.all.rte_lpm"}}},
	{"ipv4.batch.rte_fib", "ipv4.random.batch32.%s.all.tapyard", bulkPeers("ipv4", "rte_fib")},
	{"ipv6.batch.rte_fib6", "ipv6.random.batch32.%s.all.tapyard", bulkPeers("ipv6", "rte_fib6")},
	{"load", "load.%s.tapyard", []gatePeer{{"bart.Table", "load.%s.bart-table"}}},
}

// bartPeer is bart.Table on the whole table; it has no batched lookup.
func bartPeer(keys string) []gatePeer {
	return []gatePeer{{"bart.Table", keys + ".single.%s.all.bart-table"}}
}

// bulkPeers are a table of DPDK with its plain lookups and with its vector ones.
func bulkPeers(family, table string) []gatePeer {
	row := family + ".random.batch32.%s.all." + table
	return []gatePeer{{table, row}, {table + " with AVX-512", row + "-avx512"}}
}

// gatedRows are the rows that gates look at.
var gatedRows = func() map[string]bool {
	rows := map[string]bool{}
	for _, g := range fibGates {
		for _, hops := range hopAssignments {
			rows[fmt.Sprintf(g.ours, hops.name)] = true
			for _, p := range g.theirs {
				rows[fmt.Sprintf(p.row, hops.name)] = true
			}
		}
	}
	return rows
}()

// gates are the rows that compare: each the worse of its assignments of next hops, and then all of them. figures
// are by row, one per round.
func gates(figures map[string][]float64) (rows []Row) {
	for _, g := range fibGates {
		var each []Row
		for _, hops := range hopAssignments {
			if row, ok := g.compare(figures, hops.name); ok {
				each = append(each, row)
			}
		}
		if len(each) == 0 {
			continue
		}
		worst := worse(each)
		worst.Name = g.name
		rows = append(append(rows, worst), each...)
	}
	return rows
}

// compare makes the row of one assignment of next hops; ok is false if none of the peers was measured.
func (g gate) compare(figures map[string][]float64, hops string) (row Row, ok bool) {
	var each []Row
	ours := figures[fmt.Sprintf(g.ours, hops)]
	for _, p := range g.theirs {
		theirs := figures[fmt.Sprintf(p.row, hops)]
		if len(theirs) == 0 {
			continue
		}
		each = append(each, ratioRow(g.name+"."+hops, p.peer, theirs, ours))
	}
	if len(each) == 0 {
		return row, false
	}
	return worse(each), true
}

// ratioRow is the median of the ratios of figures that were taken together.
func ratioRow(name, peer string, over, under []float64) Row {
	ratios := slices.Clone(over)
	for i := range ratios {
		ratios[i] /= under[i]
	}
	q, _ := quartiles(ratios)
	return Row{Name: name, Unit: unitRatio, Peer: peer, Value: q[1], Ratio: q[1], Low: q[0], High: q[2]}
}

// worse is the row with the lowest ratio.
func worse(rows []Row) Row {
	return slices.MinFunc(rows, func(a, b Row) int { return cmp.Compare(a.Ratio, b.Ratio) })
}
