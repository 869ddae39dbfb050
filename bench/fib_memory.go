package bench

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/gaissmai/bart"

	"tapyard/fib"
)

// memory measures bytes a route with all routes of both families in one table, whichever assignment of next hops
// takes more: what the table says of itself, and by how much each table makes the heap grow.
func (b *fibBench) memory(context.Context) error {
	names := []string{"memory.readers", "memory.total",
		"memory.heap.tapyard", "memory.heap.bart-table", "memory.heap.bart-fast", "memory.heap.bart-lite"}
	most := make([]int, len(names))
	for _, hops := range hopAssignments {
		routes := hops.routes(b.prefixes)
		ours, err := loadOurs(routes)
		if err != nil {
			return err
		}
		readers, total := ours.Memory()
		for i, bytes := range []int{readers, total,
			heapGrowth(func() any { t, _ := loadOurs(routes); return t }), // the same again, which went well
			heapGrowth(func() any { return loadBart(routes) }),
			heapGrowth(func() any { return loadBartFast(routes) }),
			heapGrowth(func() any { return loadBartLite(routes) }),
		} {
			most[i] = max(most[i], bytes)
		}
		runtime.KeepAlive(routes) // or they would go while the last table grows
	}
	for i, name := range names {
		b.record("memory", name, "bytes a route", float64(most[i])/float64(len(b.prefixes)))
		b.say("%s %s bytes a route", name, b.median(name))
	}
	return nil
}

// heapGrowth is by how many bytes the heap grows for what f builds.
func heapGrowth(f func() any) int {
	before := heapInUse()
	built := f()
	after := heapInUse()
	runtime.KeepAlive(built)
	return after - before
}

func heapInUse() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func loadOurs(routes []fib.Route) (*fib.Table, error) {
	t := fib.New(new(fib.Domain))
	return t, t.Replace(routes)
}

func loadBart(routes []fib.Route) *bart.Table[uint32] {
	t := new(bart.Table[uint32])
	for _, r := range routes {
		t.Insert(r.Prefix, uint32(r.NextHop))
	}
	return t
}

func loadBartFast(routes []fib.Route) *bart.Fast[uint32] {
	t := new(bart.Fast[uint32])
	for _, r := range routes {
		t.Insert(r.Prefix, uint32(r.NextHop))
	}
	return t
}

func loadBartLite(routes []fib.Route) *bart.Lite {
	t := new(bart.Lite)
	for _, r := range routes {
		t.Insert(r.Prefix)
	}
	return t
}

// load measures how long it takes to fill a table with all routes of both families from a sorted list, in seconds
// that include what the garbage collector takes meanwhile.
func (b *fibBench) load(ctx context.Context) error {
	for _, hops := range hopAssignments {
		routes := hops.routes(b.prefixes)
		var failed error
		ours, theirs := fmt.Sprintf("load.%s.tapyard", hops.name), fmt.Sprintf("load.%s.bart-table", hops.name)
		for n := range 1 + b.cfg.Repeat {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			a := stopwatch(func() any { t, err := loadOurs(routes); failed = err; return t })
			z := stopwatch(func() any { return loadBart(routes) })
			if failed != nil {
				return failed
			}
			b.say("load.%s %d/%d: tapyard %v, bart.Table %v", hops.name, n, b.cfg.Repeat, a, z)
			if n > 0 { // the first one warms up
				b.record("load", ours, "s", a.Seconds())
				b.record("load", theirs, "s", z.Seconds())
			}
		}
	}
	return nil
}

// stopwatch is the time that f takes on a heap that was collected before.
func stopwatch(f func() any) time.Duration {
	runtime.GC()
	began := time.Now()
	built := f()
	took := time.Since(began)
	runtime.KeepAlive(built)
	return took
}
