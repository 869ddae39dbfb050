package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"tapyard/fib"
)

// fibBurst is how many keys a worker of the switch looks up at a time, dpdkBurst DPDK's own.
const fibBurst, dpdkBurst = 64, 32

// contender is one way to answer the keys of a cell.
type contender struct {
	mode    string // single, batch (of 64), batch32
	who     string
	matches bool // it counts the keys that a route covers instead of adding up next hops
	// pass looks up the keys in [from, to) once and adds up the answers.
	pass func(from, to int) (sum uint64, took time.Duration, err error)
}

// timed is the pass of a contender that runs on our thread. It takes the thread's own time, so that others on
// the machine disturb caches at most.
func timed(loop func(from, to int) uint64) func(from, to int) (uint64, time.Duration, error) {
	return func(from, to int) (uint64, time.Duration, error) {
		began, err := threadTime()
		sum := loop(from, to)
		ended, e := threadTime()
		return sum, ended - began, errors.Join(err, e)
	}
}

// threadTime is the CPU time of the calling thread.
func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("read the thread's CPU time: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// fibTables are the same routes in every table of this process.
type fibTables struct {
	family ipFamily
	ours   *fib.Table
	table  *bart.Table[uint32]
	fast   *bart.Fast[uint32]
	lite   *bart.Lite
}

func buildTables(f ipFamily, routes []fib.Route) (*fibTables, error) {
	t := &fibTables{family: f, ours: fib.New(new(fib.Domain)),
		table: new(bart.Table[uint32]), fast: new(bart.Fast[uint32]), lite: new(bart.Lite)}
	if err := t.ours.Replace(routes); err != nil {
		return nil, err
	}
	for _, r := range routes {
		t.table.Insert(r.Prefix, uint32(r.NextHop))
		t.fast.Insert(r.Prefix, uint32(r.NextHop))
		t.lite.Insert(r.Prefix)
	}
	return t, nil
}

// contenders are those of this process, for keys in any order or each found by the answer before it.
func (t *fibTables) contenders(k *keySet, dependent bool) []contender {
	if dependent {
		return append(t.chasers(k),
			contender{mode: "single", who: "bart-table", pass: timed(func(i, j int) uint64 { return chaseBartTable(t.table, k.addrs[i:j]) })},
			contender{mode: "single", who: "bart-fast", pass: timed(func(i, j int) uint64 { return chaseBartFast(t.fast, k.addrs[i:j]) })},
			contender{mode: "single", who: "bart-lite", matches: true,
				pass: timed(func(i, j int) uint64 { return chaseBartLite(t.lite, k.addrs[i:j]) })})
	}
	return append(t.summers(k),
		contender{mode: "single", who: "bart-table", pass: timed(func(i, j int) uint64 { return sumBartTable(t.table, k.addrs[i:j]) })},
		contender{mode: "single", who: "bart-fast", pass: timed(func(i, j int) uint64 { return sumBartFast(t.fast, k.addrs[i:j]) })},
		contender{mode: "single", who: "bart-lite", matches: true,
			pass: timed(func(i, j int) uint64 { return countBartLite(t.lite, k.addrs[i:j]) })})
}

// chasers is our own table on dependent keys.
func (t *fibTables) chasers(k *keySet) []contender {
	loop := func(i, j int) uint64 { return chaseTapyard4(t.ours, k.keys4[i:j]) }
	if t.family == family6 {
		loop = func(i, j int) uint64 { return chaseTapyard6(t.ours, k.keys6[i:j]) }
	}
	return []contender{{mode: "single", who: "tapyard", pass: timed(loop)}}
}

// summers is our own table on independent keys, one at a time and in bursts.
func (t *fibTables) summers(k *keySet) []contender {
	out := make([]fib.NextHop, fibBurst)
	single := func(i, j int) uint64 { return sumTapyard4(t.ours, k.keys4[i:j]) }
	batch := func(i, j int) uint64 { return sumTapyardBatch4(t.ours, k.keys4[i:j], out) }
	batch32 := func(i, j int) uint64 { return sumTapyardBatch4(t.ours, k.keys4[i:j], out[:dpdkBurst]) }
	if t.family == family6 {
		single = func(i, j int) uint64 { return sumTapyard6(t.ours, k.keys6[i:j]) }
		batch = func(i, j int) uint64 { return sumTapyardBatch6(t.ours, k.keys6[i:j], out) }
		batch32 = func(i, j int) uint64 { return sumTapyardBatch6(t.ours, k.keys6[i:j], out[:dpdkBurst]) }
	}
	return []contender{
		{mode: "single", who: "tapyard", pass: timed(single)},
		{mode: "batch", who: "tapyard", pass: timed(batch)},
		{mode: "batch32", who: "tapyard", pass: timed(batch32)},
	}
}

// cell is one combination of table and keys, with everybody who answers it.
type cell struct {
	base       string // of its rows' names, with %s where the mode belongs: ipv4.random.%s.unique.all
	addrs      []netip.Addr
	contenders []contender
}

// name is that of the row with a contender's figure.
func (c *cell) name(x *contender) string { return fmt.Sprintf(c.base, x.mode) + "." + x.who }

// warmUpShare is which part of the keys warms caches up before the first round.
const warmUpShare = 4

// run lets the contenders look up all keys in turn, round by round, and compares their sums. Each takes part in as
// many rounds as the caller says for its row's name, the first contender in all. It returns nanoseconds per lookup
// by row, one for each round; a warm-up comes before.
func (c *cell) run(ctx context.Context, rounds func(name string) int) (figures map[string][]float64, err error) {
	runtime.GC() // now rather than meanwhile
	figures = map[string][]float64{}
	if err := c.round(len(c.addrs)/warmUpShare, c.contenders, func(string, float64) {}); err != nil {
		return nil, err
	}
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var turn []contender
		for i, x := range c.contenders {
			if n < rounds(c.name(&c.contenders[i])) {
				turn = append(turn, x)
			}
		}
		if len(turn) == 0 {
			return figures, nil
		}
		err := c.round(len(c.addrs), turn, func(name string, ns float64) { figures[name] = append(figures[name], ns) })
		if err != nil {
			return nil, err
		}
	}
}

// round lets contenders look up the first n keys, and passes on how long a lookup took each. Their sums have to be
// equal, or for those that only count matches, all keys covered.
func (c *cell) round(n int, contenders []contender, took func(name string, ns float64)) error {
	var first *contender
	var want uint64
	for i := range contenders {
		x := &contenders[i]
		sum, time, err := x.pass(0, n)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name(x), err)
		}
		switch {
		case x.matches && sum != uint64(n):
			return c.difference(&contender{mode: x.mode, who: "key-set", pass: covered}, x, n)
		case !x.matches && first == nil:
			first, want = x, sum
		case !x.matches && sum != want:
			return c.difference(first, x, n)
		}
		took(c.name(x), float64(time.Nanoseconds())/float64(n))
	}
	return nil
}

// covered is what contenders that count matches have to agree with: key sets consist of covered addresses.
func covered(from, to int) (uint64, time.Duration, error) { return uint64(to - from), 0, nil }

// difference finds the key at which the sums of two contenders part, by halves; over the first n keys they differ.
func (c *cell) difference(a, b *contender, n int) error {
	same := func(from, to int) (x, y uint64, err error) {
		x, _, err = a.pass(from, to)
		if err == nil {
			y, _, err = b.pass(from, to)
		}
		return x, y, err
	}
	low, high := 0, n // the sums of the first low keys agree, those of the first high ones don't
	for high-low > 1 {
		mid := (low + high) / 2
		x, y, err := same(0, mid)
		if err != nil {
			return err
		}
		if x == y {
			low = mid
		} else {
			high = mid
		}
	}
	x, y, err := same(low, high)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s and %s disagree on %v: next hop %d and %d; one of them is wrong, so that no figure counts",
		c.name(a), c.name(b), c.addrs[low], x, y)
}

// summary is a line of progress: everybody's median.
func (c *cell) summary(figures map[string][]float64) string {
	var parts []string
	for i := range c.contenders {
		x := &c.contenders[i]
		if q, ok := quartiles(figures[c.name(x)]); ok {
			parts = append(parts, fmt.Sprintf("%s %s %s", x.who, x.mode, short(q[1])))
		}
	}
	return fmt.Sprintf(c.base, "*") + ": " + strings.Join(parts, ", ") + " ns"
}
