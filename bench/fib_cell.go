package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
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
		runtime.LockOSThread() // whose time it is
		defer runtime.UnlockOSThread()
		began, err := threadTime()
		sum := loop(from, to)
		ended, e := threadTime()
		return sum, ended - began, errors.Join(err, e)
	}
}

// oneByOne is a contender of this process that looks up one key at a time.
func oneByOne(who string, loop func(from, to int) uint64) contender {
	return contender{mode: "single", who: who, pass: timed(loop)}
}

// matching is such a one that counts matches.
func matching(who string, loop func(from, to int) uint64) contender {
	return contender{mode: "single", who: who, matches: true, pass: timed(loop)}
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
	ours, err := loadOurs(routes)
	t := &fibTables{family: f, ours: ours}
	t.table, t.fast, t.lite = loadBart(routes), loadBartFast(routes), loadBartLite(routes)
	return t, err
}

// contenders are those of this process, for keys in any order or each found by the answer before it.
func (t *fibTables) contenders(k *keySet, dependent bool) []contender {
	if dependent {
		return []contender{
			t.chaser(k),
			oneByOne("bart-table", func(i, j int) uint64 { return chaseBartTable(t.table, k.addrs[i:j]) }),
			oneByOne("bart-fast", func(i, j int) uint64 { return chaseBartFast(t.fast, k.addrs[i:j]) }),
			matching("bart-lite", func(i, j int) uint64 { return chaseBartLite(t.lite, k.addrs[i:j]) }),
		}
	}
	return append(t.summers(k), t.bartTable(k),
		oneByOne("bart-fast", func(i, j int) uint64 { return sumBartFast(t.fast, k.addrs[i:j]) }),
		matching("bart-lite", func(i, j int) uint64 { return countBartLite(t.lite, k.addrs[i:j]) }))
}

// bartTable is bart.Table on independent keys.
func (t *fibTables) bartTable(k *keySet) contender {
	return oneByOne("bart-table", func(i, j int) uint64 { return sumBartTable(t.table, k.addrs[i:j]) })
}

// chaser is our own table on dependent keys.
func (t *fibTables) chaser(k *keySet) contender {
	if t.family == family6 {
		return oneByOne("tapyard", func(i, j int) uint64 { return chaseTapyard6(t.ours, k.keys6[i:j]) })
	}
	return oneByOne("tapyard", func(i, j int) uint64 { return chaseTapyard4(t.ours, k.keys4[i:j]) })
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
		oneByOne("tapyard", single),
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
// many rounds as the caller says for its row's name. took gets nanoseconds per lookup by row; a warm-up comes before.
func (c *cell) run(ctx context.Context, rounds func(name string) int, took func(name string, ns float64)) error {
	runtime.GC() // now rather than meanwhile
	if err := c.round(len(c.addrs)/warmUpShare, c.contenders, func(string, float64) {}); err != nil {
		return err
	}
	for n := 0; ctx.Err() == nil; n++ {
		var turn []contender
		for _, x := range c.contenders {
			if n < rounds(c.name(&x)) {
				turn = append(turn, x)
			}
		}
		if len(turn) == 0 {
			return nil
		}
		if err := c.round(len(c.addrs), turn, took); err != nil {
			return err
		}
	}
	return ctx.Err()
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
	sums := func(from, to int) (x, y uint64, err error) {
		x, _, err = a.pass(from, to)
		if err == nil {
			y, _, err = b.pass(from, to)
		}
		return x, y, err
	}
	low, high := 0, n // the sums of the first low keys agree, those of the first high ones don't
	for high-low > 1 {
		mid := (low + high) / 2
		x, y, err := sums(0, mid)
		if err != nil {
			return err
		}
		if x == y {
			low = mid
		} else {
			high = mid
		}
	}
	x, y, err := sums(low, high)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s and %s disagree on %v: next hop %d and %d; one of them is wrong, so that no figure counts",
		c.name(a), c.name(b), c.addrs[low], x, y)
}
