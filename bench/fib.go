package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tapyard/fib"
)

const (
	fibKeys  = 1 << 22 // in a key set; a multiple of four bursts
	fibSeed  = 4       // of what is drawn: tables and keys are the same in every run
	allSizes = "all"   // the name of the whole table's size
)

// fibSizes are the numbers of routes beside all.
var fibSizes = []int{10, 1_000, 100_000}

const fibHelp = `Measures the forwarding table beside others on the same routes and the same keys: gaissmai/bart (Table,
Fast and Lite) in this process, and where Debian's libdpdk-dev, pkg-config and a C compiler are installed, DPDK's
rte_lpm, rte_fib and rte_fib6 in a small C program. In each round everybody looks up all keys once, in turn, and all
must come to the same sum of next hops, or no figure counts. It takes 5 minutes, in one of which rte_lpm loads.

A row that compares takes the worse of two assignments of next hops: hash (a hash of the prefix, mod 256) and unique
(one for each route); NAME.hash and NAME.unique are each one's own.

  ipv4.random.single ipv4.random.batch ipv6.random.single ipv6.random.batch ipv4.dependent ipv6.dependent
                      all routes, against bart.Table, which has no batched lookup
  ipv4.small          10 routes, against bart.Lite, which only says whether there is a route
  ipv4.single.rte_lpm ipv4.batch.rte_fib ipv6.batch.rte_fib6
                      all routes, against DPDK, with AVX-512 where that is faster; batches are of 32
  load                all routes from a sorted list, against bart.Table
  updates.reader      a reader's lookups per second beside a writer, against its own alone

All others are absolute. memory.readers and memory.total are what the table says of itself, memory.heap.WHO is by how
much the heap grows. updates are changes of one route, drawn from the whole table, beside a reader, updates.idle
without one, updates.short.p99 changes of routes of length 0 to 8. Lookups, in ns, are named
FAMILY.KEYS.MODE.HOPS.ROUTES.WHO, such as ipv4.random.single.unique.all.bart-table:

  KEYS    random     IPv4: uniform over the addresses that a route covers; IPv6: inside a random prefix
          skewed     Zipf's distribution over 65,536 of those
          dependent  random, each key found by means of the last answer
  MODE    single, batch (64 keys at a time), batch32
  HOPS    hash (only where a row compares), unique
  ROUTES  all of the family's, or how many drawn from them
  WHO     tapyard, bart-table, bart-fast, bart-lite, rte_lpm, rte_fib, rte_fib-avx512, rte_fib6, rte_fib6-avx512`

// FIBConfig says on which routes the table is measured, and how often.
type FIBConfig struct {
	Routes   string    // see loadPrefixes
	Repeat   int       // rounds, at least 1
	Progress io.Writer // a line per cell; nil is nowhere
}

func fibCommand() *cobra.Command {
	var cfg FIBConfig
	run := func(ctx context.Context, progress io.Writer) (*Report, error) {
		cfg.Progress = progress
		return FIB(ctx, cfg)
	}
	cmd := benchmarkCommand("fib", "Longest-prefix match beside bart and DPDK", run)
	cmd.Long = fibHelp
	cmd.Flags().StringVar(&cfg.Routes, "routes", "",
		"file of one prefix a line, plain or gzip (default "+fibRoutes+", or if that is absent a generated table)")
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", 9, "rounds of rows that compare; others take a third of them")
	return cmd
}

// fibBench is one run of the benchmark.
type fibBench struct {
	cfg      FIBConfig
	prefixes []netip.Prefix       // sorted, each once
	sizes    []int                // of subsets, see fibSizes
	keys     int                  // per set
	phase    time.Duration        // of updates, see updatePhase
	cpu      int                  // that everybody runs on
	dpdk     *dpdk                // nil if it is absent
	figures  map[string][]float64 // by row, one of each round
	order    []Row                // their names and units, in the order measured
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
	b := &fibBench{cfg: cfg, prefixes: prefixes, sizes: fibSizes, keys: fibKeys, phase: updatePhase}
	b.figures = map[string][]float64{}
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
	lookups4 := func(ctx context.Context) error { return b.family(ctx, family4) }
	lookups6 := func(ctx context.Context) error { return b.family(ctx, family6) }
	for _, part := range []func(context.Context) error{b.memory, b.load, b.updates, lookups4, lookups6} {
		err := part(ctx)
		if ctx.Err() != nil {
			return nil, errors.New("interrupted") // instead of how the child ended
		}
		if err != nil {
			return nil, err
		}
	}
	beside, alone := b.figures["updates.reader.lookups.beside"], b.figures["updates.reader.lookups.alone"]
	reader := ratioRow("updates.reader", "the reader alone", beside, alone)
	b.report.Rows = slices.Concat(gates(b.figures), []Row{reader}, b.rows())
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

// record keeps a row's figure of one round; rows of one group stand together.
func (b *fibBench) record(group, name, unit string, v float64) {
	if b.figures[name] == nil {
		b.order = append(b.order, Row{Name: name, Unit: unit, group: group})
	}
	b.figures[name] = append(b.figures[name], v)
}

// median is that of a row's figures so far, for progress.
func (b *fibBench) median(name string) string {
	q, _ := quartiles(b.figures[name])
	return short(q[1])
}

// rows are those of absolute figures.
func (b *fibBench) rows() []Row {
	rows := slices.Clone(b.order)
	for i := range rows {
		q, _ := quartiles(b.figures[rows[i].Name])
		rows[i].Low, rows[i].Value, rows[i].High = q[0], q[1], q[2]
	}
	return rows
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
			ours := fmt.Sprintf("%s.%s.single.%s.%s.tapyard", f, k.name, hops.name, size)
			if hops.name == hardestHops || gatedRows[ours] {
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
		err := c.run(ctx, b.rounds, func(name string, ns float64) { b.record(c.base, name, "ns/lookup", ns) })
		if err == nil {
			b.say("%s", b.summary(c))
		}
		return err
	})
}

// summary is a line of progress: everybody's median.
func (b *fibBench) summary(c *cell) string {
	var parts []string
	for i := range c.contenders {
		x := &c.contenders[i]
		parts = append(parts, fmt.Sprintf("%s %s %s", x.who, x.mode, b.median(c.name(x))))
	}
	return fmt.Sprintf(c.base, "*") + ": " + strings.Join(parts, ", ") + " ns"
}

// rounds is how often a contender is measured: one that a row compares is more often.
func (b *fibBench) rounds(name string) int {
	if gatedRows[name] {
		return b.cfg.Repeat
	}
	return max(b.cfg.Repeat/3, 1)
}
