package bench

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// rowGroup is rows that one set of subjects makes in one go.
type rowGroup struct {
	bases []string // beginnings of its rows' names, without the peer's
	run   func(*session, context.Context) ([]Row, error)
}

// rowGroups are what `bench compare` measures, in this order.
var rowGroups = []rowGroup{
	{[]string{"pps.samenode.burst"}, (*session).compareBurst},
	{[]string{"tcp.samenode"}, (*session).compareTCP},
	{[]string{"pps.samenode.flows"}, (*session).compareFlows},
	{[]string{"latency.samenode"}, (*session).compareLatency},
	{[]string{"scale"}, (*session).scale},
	{[]string{"pps.crossnode.burst"}, crossPPS(crossBurstScenario, "", true, crossPeers...)},
	{[]string{"pps.crossnode.mixed"}, crossPPS(crossMixedScenario, "", true, "vxlan")},
	{[]string{"tcp.crossnode", "cpu.crossnode"}, crossTCP("", true)},
	{[]string{"tcp.crossnode.plain"}, crossPlain("", true)},
	{[]string{"pps.crossnode.burst.nooffload"}, crossPPS(crossBurstScenario, withoutOffloads, false, crossPeers...)},
	{[]string{"pps.crossnode.mixed.nooffload"}, crossPPS(crossMixedScenario, withoutOffloads, false, "vxlan")},
	{[]string{"tcp.crossnode.nooffload", "cpu.crossnode.nooffload"}, crossTCP(withoutOffloads, false)},
	{[]string{"tcp.crossnode.plain.nooffload"}, crossPlain(withoutOffloads, false)},
	{[]string{"workers.reordered", "workers.share", "workers.one"}, (*session).workers},
	{[]string{"workers.idle"}, (*session).idleWorkers},
	{[]string{"integrity"}, (*session).integrity},
}

// CompareConfig says what Compare measures.
type CompareConfig struct {
	Config
	Rows []string // beginnings of rows' names; none is all
}

func compareCommand() *cobra.Command {
	var cfg CompareConfig
	cmd := benchmarkCommand("compare", "Everything beside everybody, with the floors that must hold", func(ctx context.Context, progress io.Writer) (*Report, error) {
		cfg.Progress = progress
		return Compare(ctx, cfg)
	})
	cmd.Flags().StringSliceVar(&cfg.Peers, "peers", peerNames(), "what to measure beside the switch")
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", floorPairs, "rounds, in each of which every subject runs once")
	cmd.Flags().StringSliceVar(&cfg.Rows, "rows", nil, "measure only rows whose names begin so, such as tcp.crossnode,cpu (default all)")
	return cmd
}

// Compare measures the switch beside its peers, on one node and across two, and judges the rows that have a floor.
func Compare(ctx context.Context, cfg CompareConfig) (*Report, error) {
	groups := selectGroups(cfg.Rows)
	if len(groups) == 0 {
		return nil, fmt.Errorf("no row's name begins with %s; there are %s", strings.Join(cfg.Rows, " or "), strings.Join(groupBases(), ", "))
	}
	report, err := runBenchmark(ctx, cfg.Config, func(ctx context.Context, s *session) (rows []Row, err error) {
		for _, g := range groups {
			r, err := g.run(s, ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", g.bases[0], err)
			}
			for i := range r {
				r[i].group = g.bases[0]
			}
			rows = append(rows, r...)
		}
		return rows, nil
	})
	if err != nil {
		return nil, err
	}
	judge(report.Rows)
	return report, nil
}

// selectGroups returns the groups that make a row whose name begins with one of the prefixes; none is all.
func selectGroups(prefixes []string) (groups []rowGroup) {
	wanted := groupBases()
	if len(prefixes) > 0 {
		wanted = nil
	}
	for _, p := range prefixes {
		wanted = append(wanted, basesOf(p)...)
	}
	for _, g := range rowGroups {
		if slices.ContainsFunc(g.bases, func(base string) bool { return slices.Contains(wanted, base) }) {
			groups = append(groups, g)
		}
	}
	return groups
}

// basesOf returns the bases that begin with a prefix, or if there are none the longest that the prefix begins with:
// "tcp.cross" is the beginning of several, tcp.crossnode.plain.vxlan is made by tcp.crossnode.plain, and not by
// tcp.crossnode.
func basesOf(prefix string) (bases []string) {
	longest := ""
	for _, base := range groupBases() {
		if strings.HasPrefix(base, prefix) {
			bases = append(bases, base)
		}
		if strings.HasPrefix(prefix, base+".") && len(base) > len(longest) {
			longest = base
		}
	}
	if len(bases) == 0 && longest != "" {
		return []string{longest}
	}
	return bases
}

func groupBases() (bases []string) {
	for _, g := range rowGroups {
		bases = append(bases, g.bases...)
	}
	return bases
}

// compareBurst leaves the bridge out: what forwards there uses no CPU time of its own, and the sender's device never
// holds it back.
func (s *session) compareBurst(ctx context.Context) ([]Row, error) {
	return s.sameNode(ctx, []string{"raw", "ovs", "vde2"}, func(ctx context.Context) ([]Row, error) {
		return s.pps(ctx, ppsScenarios[0])
	})
}

func (s *session) compareTCP(ctx context.Context) ([]Row, error) {
	return s.sameNode(ctx, []string{"raw", "bridge", "ovs", "vde2"}, s.tcp)
}
