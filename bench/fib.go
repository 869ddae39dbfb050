package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"

	"github.com/spf13/cobra"
	"tapyard/fib"
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
	cpu      int            // that everybody runs on
	dpdk     *dpdk          // nil if it is absent
	names    []string       // of rows with ns/lookup, in the order measured
	figures  map[string][]float64
	report   *Report
}

// FIB measures package fib beside other tables.
func FIB(ctx context.Context, cfg FIBConfig) (report *Report, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	lock, err := lockBench()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	prefixes, note, err := loadPrefixes(cfg.Routes)
	if err != nil {
		return nil, err
	}
	b, err := newFIBBench(cfg, prefixes)
	if err != nil {
		return nil, err
	}
	if note != "" {
		b.note("%s", note)
	}
	return b.run(ctx)
}

func newFIBBench(cfg FIBConfig, prefixes []netip.Prefix) (*fibBench, error) {
	cfg.Repeat = max(cfg.Repeat, 1)
	b := &fibBench{cfg: cfg, prefixes: prefixes, sizes: fibSizes, keys: fibKeys, figures: map[string][]float64{}}
	b.report = &Report{Host: hostLine(), Commit: commit(), Absent: map[string]string{}}
	_, cpus, err := splitCPUs()
	for !cpus.IsSet(b.cpu) && err == nil {
		b.cpu++
	}
	return b, err
}

// run measures everything.
func (b *fibBench) run(ctx context.Context) (report *Report, err error) {
	dir, err := os.MkdirTemp("", benchPrefix)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := b.start(ctx, dir); err != nil {
		return nil, err
	}
	if b.dpdk != nil {
		defer b.dpdk.close()
	}
	for _, f := range []ipFamily{family4, family6} {
		err := b.family(ctx, f)
		if ctx.Err() != nil {
			return nil, errors.New("interrupted") // instead of how the child ended
		}
		if err != nil {
			return nil, err
		}
	}
	b.report.Rows = append(b.report.Rows, gates(b.figures)...)
	for _, name := range b.names {
		q, _ := quartiles(b.figures[name])
		b.report.Rows = append(b.report.Rows, Row{Name: name, Unit: "ns/lookup", Value: q[1], Low: q[0], High: q[2]})
	}
	return b.report, nil
}

// start brings DPDK up, or notes that it is absent.
func (b *fibBench) start(ctx context.Context, dir string) (err error) {
	b.dpdk, err = startDPDK(ctx, dir, b.cpu, b.say)
	var absent *absentError
	if errors.As(err, &absent) {
		b.report.Absent[absent.peer] = absent.why
		b.say("%v", absent)
		return nil
	}
	if err == nil {
		b.note("DPDK's memory: %s", b.dpdk.pages)
	}
	return err
}

// note is progress that belongs into the report as well.
func (b *fibBench) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.say("%s", text)
	b.report.Notes = append(b.report.Notes, text)
}

// say writes a line of progress.
func (b *fibBench) say(format string, args ...any) {
	fmt.Fprintf(b.cfg.Progress, format+"\n", args...)
}

// family measures all tables of one family.
func (b *fibBench) family(ctx context.Context, f ipFamily) error {
	prefixes := f.of(b.prefixes)
	r := rand.New(rand.NewPCG(fibSeed, uint64(len(prefixes))))
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

// table measures one table with all keys. The assignments of next hops are the hardest one and, where rows
// compare, each.
func (b *fibBench) table(ctx context.Context, r *rand.Rand, f ipFamily, size string, prefixes []netip.Prefix) error {
	random := newKeySet(f, randomAddrs(r, f, prefixes, b.keys))
	skewed := newKeySet(f, skewedAddrs(r, f, prefixes, b.keys))
	for _, hops := range hopAssignments {
		var kinds []keyKind
		for _, k := range []keyKind{{"random", random, false}, {"skewed", skewed, false}, {"dependent", random, true}} {
			if hops.name == hardestHops || gatedRows[fmt.Sprintf("%s.%s.single.%s.%s.tapyard", f, k.name, hops.name, size)] {
				kinds = append(kinds, k)
			}
		}
		if len(kinds) == 0 {
			continue
		}
		if err := b.cells(ctx, f, fmt.Sprintf("%s.%s", hops.name, size), hops.routes(prefixes), kinds); err != nil {
			return err
		}
	}
	return nil
}

// keyKind is a way to ask.
type keyKind struct {
	name      string
	keys      *keySet
	dependent bool // each key is found by the last answer
}

// cells builds everybody's tables of the routes and lets them answer each kind of keys.
func (b *fibBench) cells(ctx context.Context, f ipFamily, name string, routes []fib.Route, kinds []keyKind) error {
	tables, err := buildTables(f, routes)
	if err != nil {
		return err
	}
	vector := false
	if b.dpdk != nil {
		if vector, err = b.dpdk.load(f, routes); err != nil {
			return err
		}
	}
	for _, k := range kinds {
		c := &cell{base: fmt.Sprintf("%s.%s.%%s.%s", f, k.name, name), addrs: k.keys.addrs}
		c.contenders = tables.contenders(k.keys, k.dependent)
		if b.dpdk != nil {
			if err := b.dpdk.setKeys(f, k.keys.addrs); err != nil {
				return err
			}
			c.contenders = append(c.contenders, b.dpdk.contenders(f, vector, k.dependent)...)
		}
		if err := b.cell(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// cell measures a cell and keeps its figures.
func (b *fibBench) cell(ctx context.Context, c *cell) error {
	return onCPUs(oneCPU(b.cpu), func() error {
		figures, err := c.run(ctx, b.rounds)
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

// rounds is how often a contender is measured: one that a row compares is more often.
func (b *fibBench) rounds(name string) int {
	if gatedRows[name] {
		return b.cfg.Repeat
	}
	return max(b.cfg.Repeat/3, 1)
}
