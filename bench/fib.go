package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	fibKeys  = 1 << 22 // in a key set, a power of two
	fibSeed  = 4       // of what is drawn: tables and keys are the same in every run
	allSizes = "all"   // the name of the whole table's size
)

// fibSizes are the numbers of routes beside all.
var fibSizes = []int{10, 1_000, 100_000}

// FIBConfig says on which routes the table is measured, and how often.
type FIBConfig struct {
	Routes   string    // file of one prefix a line, plain or gzip; "" is the real table, or a generated one if that is absent
	Repeat   int       // rounds, at least 1
	Progress io.Writer // a line per cell; nil is nowhere
}

func fibCommand() *cobra.Command {
	var cfg FIBConfig
	cmd := benchmarkCommand("fib", "Longest-prefix match beside bart and DPDK", func(ctx context.Context, progress io.Writer) (*Report, error) {
		cfg.Progress = progress
		return FIB(ctx, cfg)
	})
	cmd.Long = `Measures the forwarding table beside gaissmai/bart (Table, Fast and Lite, in this process).
Everybody looks up the same keys in the same routes; that the sums of their answers agree is checked in each round.
Rows that compare take the worse of two ways to give routes next hops: hash (hash of the prefix mod 256) and unique (one
per route); the same name with .hash or .unique behind it is that one's own. Nanoseconds per lookup are in the rows
FAMILY.KEYS.MODE.HOPS.ROUTES.CONTENDER, such as ipv4.random.single.unique.all.bart-table:
KEYS are random (uniform over covered addresses; for IPv6 inside a random prefix), skewed (Zipf over 65,536 of those) or
dependent (random, each found by the last answer); MODE is single, batch (bursts of 64) or batch32; HOPS is
hash or unique; ROUTES is how many of the family's, drawn at random.`
	cmd.Flags().StringVar(&cfg.Routes, "routes", "", "file of one prefix a line, plain or gzip (default "+fibRoutes+", or where that is absent a generated table)")
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", 9, "rounds of each row that compares, in each of which every contender runs once; other rows take a third")
	return cmd
}

// fibBench is one run of the benchmark.
type fibBench struct {
	cfg      FIBConfig
	prefixes []netip.Prefix // sorted, each once
	sizes    []int          // of subsets, see fibSizes
	keys     int            // per set
	cpus     unix.CPUSet    // that everybody runs on
	names    []string       // of rows with ns/lookup, in the order measured
	figures  map[string][]float64
	report   *Report
}

// FIB measures package fib beside other tables.
func FIB(ctx context.Context, cfg FIBConfig) (*Report, error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	lock, err := lockBench()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	b := &fibBench{cfg: cfg, sizes: fibSizes, keys: fibKeys}
	var note string
	if b.prefixes, note, err = loadPrefixes(cfg.Routes); err != nil {
		return nil, err
	}
	if note != "" {
		b.note(note)
	}
	return b.run(ctx)
}

// run measures everything.
func (b *fibBench) run(ctx context.Context) (*Report, error) {
	b.cfg.Repeat = max(b.cfg.Repeat, 1)
	b.figures = map[string][]float64{}
	if b.report == nil {
		b.report = &Report{}
	}
	b.report.Host, b.report.Commit = hostLine(), commit()
	var err error
	if _, b.cpus, err = splitCPUs(); err != nil {
		return nil, err
	}
	for _, f := range []ipFamily{family4, family6} {
		if err := b.family(ctx, f); err != nil {
			return nil, err
		}
	}
	b.report.Rows = append(b.report.Rows, b.gates()...)
	for _, name := range b.names {
		q, _ := quartiles(b.figures[name])
		b.report.Rows = append(b.report.Rows, Row{Name: name, Unit: "ns/lookup", Value: q[1], Low: q[0], High: q[2]})
	}
	return b.report, nil
}

// note is progress that belongs into the report as well.
func (b *fibBench) note(text string) {
	b.say("%s", text)
	if b.report == nil {
		b.report = &Report{}
	}
	b.report.Notes = append(b.report.Notes, text)
}

// say writes a line of progress.
func (b *fibBench) say(format string, args ...any) {
	fmt.Fprintf(b.cfg.Progress, format+"\n", args...)
}

// family measures all tables of one family.
func (b *fibBench) family(ctx context.Context, f ipFamily) error {
	prefixes := f.of(b.prefixes)
	r := rand.New(rand.NewPCG(fibSeed, uint64(len(f))))
	for _, n := range b.sizes {
		if n < len(prefixes) {
			if err := b.table(ctx, r, f, strconv.Itoa(n), subset(r, prefixes, n)); err != nil {
				return err
			}
		}
	}
	if len(prefixes) == 0 {
		return nil
	}
	return b.table(ctx, r, f, allSizes, prefixes)
}

// table measures one table with all assignments of next hops and all keys.
func (b *fibBench) table(ctx context.Context, r *rand.Rand, f ipFamily, size string, prefixes []netip.Prefix) error {
	random := newKeySet(f, randomAddrs(r, f, prefixes, b.keys))
	skewed := newKeySet(f, skewedAddrs(r, f, prefixes, b.keys))
	for _, hops := range hopAssignments {
		tables, err := buildTables(f, hops.routes(prefixes))
		if err != nil {
			return err
		}
		for _, kind := range []struct {
			name      string
			keys      *keySet
			dependent bool
		}{{"random", random, false}, {"skewed", skewed, false}, {"dependent", random, true}} {
			c := &cell{base: fmt.Sprintf("%s.%s.%%s.%s.%s", f, kind.name, hops.name, size), addrs: kind.keys.addrs}
			c.contenders = tables.contenders(kind.keys, kind.dependent)
			if err := b.cell(ctx, c, b.rounds(f, kind.name, size)); err != nil {
				return err
			}
		}
	}
	return nil
}

// rounds is how often a cell is measured: those that rows compare are more often.
func (b *fibBench) rounds(f ipFamily, keys, size string) int {
	if size == allSizes && keys != "skewed" || f == family4 && keys == "random" && size == strconv.Itoa(fibSizes[0]) {
		return b.cfg.Repeat
	}
	return max(b.cfg.Repeat/3, 1)
}

// cell measures a cell and keeps its figures.
func (b *fibBench) cell(ctx context.Context, c *cell, rounds int) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return onCPUs(b.cpus, func() error {
		figures, err := c.run(rounds)
		if err != nil {
			return err
		}
		for i := range c.contenders {
			name := c.name(&c.contenders[i])
			b.names = append(b.names, name)
			b.figures[name] = figures[name]
		}
		b.say("%s", c.summary(figures))
		return nil
	})
}

// gate is a row that compares. Ours and theirs are rows' names with %s where the hops belong; where there are
// several of theirs, the fastest counts.
type gate struct {
	name   string
	ours   string
	theirs []gatePeer
}

type gatePeer struct{ peer, row string }

var fibGates = []gate{
	{"ipv4.random.single", "ipv4.random.single.%s.all.tapyard", []gatePeer{{"bart.Table", "ipv4.random.single.%s.all.bart-table"}}},
	{"ipv4.random.batch", "ipv4.random.batch.%s.all.tapyard", []gatePeer{{"bart.Table", "ipv4.random.single.%s.all.bart-table"}}},
	{"ipv6.random.single", "ipv6.random.single.%s.all.tapyard", []gatePeer{{"bart.Table", "ipv6.random.single.%s.all.bart-table"}}},
	{"ipv6.random.batch", "ipv6.random.batch.%s.all.tapyard", []gatePeer{{"bart.Table", "ipv6.random.single.%s.all.bart-table"}}},
	{"ipv4.dependent", "ipv4.dependent.single.%s.all.tapyard", []gatePeer{{"bart.Table", "ipv4.dependent.single.%s.all.bart-table"}}},
	{"ipv6.dependent", "ipv6.dependent.single.%s.all.tapyard", []gatePeer{{"bart.Table", "ipv6.dependent.single.%s.all.bart-table"}}},
	{"ipv4.small", "ipv4.random.single.%s.10.tapyard", []gatePeer{{"bart.Lite", "ipv4.random.single.%s.10.bart-lite"}}},
}

// gates are the rows that compare: each the worse of its assignments of next hops, and then all of them.
func (b *fibBench) gates() (rows []Row) {
	for _, g := range fibGates {
		var each []Row
		for _, hops := range hopAssignments {
			if row, ok := b.worst(g, hops.name); ok {
				each = append(each, row)
			}
		}
		if len(each) == 0 {
			continue
		}
		gate := worse(each)
		gate.Name = g.name
		rows = append(append(rows, gate), each...)
	}
	return rows
}

// worst compares for one assignment of next hops; ok is false if none of the peers was measured.
func (b *fibBench) worst(g gate, hops string) (row Row, ok bool) {
	var each []Row
	ours := b.figures[fmt.Sprintf(g.ours, hops)]
	for _, p := range g.theirs {
		theirs := b.figures[fmt.Sprintf(p.row, hops)]
		var ratios []float64
		for i := range theirs {
			ratios = append(ratios, theirs[i]/ours[i])
		}
		if q, ok := quartiles(ratios); ok {
			each = append(each, Row{Name: g.name + "." + hops, Unit: unitRatio, Peer: p.peer, Value: q[1], Ratio: q[1], Low: q[0], High: q[2]})
		}
	}
	if len(each) == 0 {
		return row, false
	}
	return worse(each), true
}

// worse is the row with the lowest ratio.
func worse(rows []Row) Row {
	lowest := rows[0]
	for _, r := range rows[1:] {
		if r.Ratio < lowest.Ratio {
			lowest = r
		}
	}
	return lowest
}
