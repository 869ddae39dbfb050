package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"tapyard/fib"
)

// updatePhase is how long each part of a round of updates lasts: the reader alone, the writer alone, both, both
// with short routes only, and bart's writer alone.
const updatePhase = 400 * time.Millisecond

// shortBits is up to which length a route counts as short.
const shortBits = 8

// updater changes a full table in which a reader looks addresses up.
type updater struct {
	phase          time.Duration
	reader, writer unix.CPUSet
	domain         fib.Domain
	ours           *fib.Table
	bart           *bart.Table[uint32]
	keys           int          // of each family, that the reader looks up again and again; a multiple of its burst
	keys4          []uint32     // as many or, if the table has no such routes, none
	keys6          []fib.Key6   // likewise
	routes         []fib.Route  // of the table, shuffled
	next           int          // of routes, to be changed
	short          []fib.Change // see shortChanges
}

// updates measures changes of one route each: a route drawn from the whole table is deleted and inserted again.
func (b *fibBench) updates(ctx context.Context) error {
	u, err := b.newUpdater()
	if err != nil {
		return err
	}
	for n := range 1 + b.cfg.Repeat {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r, err := u.round()
		if err != nil {
			return err
		}
		b.say("updates %d/%d: %s changes/s beside a reader, %s alone", n, b.cfg.Repeat, short(r.beside), short(r.idle))
		if n == 0 { // it warms up
			continue
		}
		b.record("updates", "updates", "changes/s beside a reader", r.beside)
		b.record("updates", "updates.idle", "changes/s without a reader", r.idle)
		b.record("updates", "updates.idle.bart-table", "changes/s without a reader", r.bart)
		b.record("updates", "updates.reader.lookups.beside", "lookups/s beside a writer", r.readerBeside)
		b.record("updates", "updates.reader.lookups.alone", "lookups/s", r.readerAlone)
		b.record("updates", "updates.short.p99", "µs, a change to a route of length 0 to 8 beside a reader", r.short)
	}
	return b.checkUpdated(u)
}

func (b *fibBench) newUpdater() (*updater, error) {
	writer, _, err := splitCPUs()
	if err != nil {
		return nil, err
	}
	u := &updater{phase: b.phase, keys: b.keys / 4, reader: oneCPU(b.cpu), writer: writer}
	u.routes = hopAssignments[len(hopAssignments)-1].routes(b.prefixes)
	u.short = shortChanges(u.routes)
	u.bart = loadBart(u.routes)
	u.ours = fib.New(&u.domain)
	if err := u.ours.Replace(u.routes); err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(fibSeed, 0))
	for _, f := range []ipFamily{family4, family6} {
		if own := f.of(b.prefixes); len(own) > 0 {
			k := newKeySet(f, randomAddrs(r, f, own, u.keys))
			u.keys4, u.keys6 = append(u.keys4, k.keys4...), append(u.keys6, k.keys6...)
		}
	}
	r.Shuffle(len(u.routes), func(i, j int) { u.routes[i], u.routes[j] = u.routes[j], u.routes[i] })
	return u, nil
}

// shortChanges deletes each short one of the routes and inserts it again, and does it the other way around with
// default routes that are not there. Each change is one of its own.
func shortChanges(routes []fib.Route) (changes []fib.Change) {
	missing := map[netip.Prefix]bool{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0): true,
		netip.PrefixFrom(netip.IPv6Unspecified(), 0): true,
	}
	for _, r := range routes {
		if r.Prefix.Bits() <= shortBits {
			changes = append(changes, fib.Change{Prefix: r.Prefix, Delete: true},
				fib.Change{Prefix: r.Prefix, NextHop: r.NextHop})
			delete(missing, r.Prefix)
		}
	}
	for p := range missing {
		changes = append(changes, fib.Change{Prefix: p, NextHop: fib.MaxNextHop}, fib.Change{Prefix: p, Delete: true})
	}
	return changes
}

// updateRound is what a round found; see updates for the units.
type updateRound struct {
	beside, idle, bart        float64
	readerAlone, readerBeside float64
	short                     float64
}

func (u *updater) round() (r updateRound, err error) {
	runtime.GC() // what the round before has left
	r.readerAlone, err = u.besideReader(func() error { time.Sleep(u.phase); return nil })
	if err != nil {
		return r, err
	}
	write := func() (err error) { r.beside, err = u.write(u.changeOurs); return err }
	if r.readerBeside, err = u.besideReader(write); err != nil {
		return r, err
	}
	if _, err = u.besideReader(func() (err error) { r.short, err = u.changeShort(); return err }); err != nil {
		return r, err
	}
	err = onCPUs(u.writer, func() (err error) {
		if r.idle, err = u.write(u.changeOurs); err == nil {
			r.bart, err = u.write(u.changeBart)
		}
		return err
	})
	return r, err
}

// besideReader calls f on the writer's CPU while the reader reads, and returns the reader's lookups per second.
func (u *updater) besideReader(f func() error) (perSecond float64, err error) {
	var stop atomic.Bool
	done := make(chan error)
	started := make(chan struct{})
	go func() {
		done <- onCPUs(u.reader, func() error { perSecond = u.read(started, &stop); return nil })
	}()
	select {
	case err = <-done: // it could not be put on its CPU
		return 0, err
	case <-started:
	}
	err = onCPUs(u.writer, f)
	stop.Store(true)
	err = errors.Join(err, <-done)
	return perSecond, err
}

// read looks keys up until stop is set, a burst of each family in turn, each followed by a quiescent point.
func (u *updater) read(started chan<- struct{}, stop *atomic.Bool) (perSecond float64) {
	reader := u.domain.Register()
	defer reader.Close()
	reader.Online()
	out := make([]fib.NextHop, fibBurst)
	began, lookups := time.Now(), 0
	close(started)
	for at := 0; !stop.Load(); at = (at + fibBurst) % u.keys {
		if len(u.keys4) > 0 {
			u.ours.View().Lookup4Batch(u.keys4[at:at+fibBurst], out)
			reader.Quiesce()
			lookups += fibBurst
		}
		if len(u.keys6) > 0 {
			u.ours.View().Lookup6Batch(u.keys6[at:at+fibBurst], out)
			reader.Quiesce()
			lookups += fibBurst
		}
	}
	return float64(lookups) / time.Since(began).Seconds()
}

// write changes one route after the other for a phase; each is two changes.
func (u *updater) write(change func(fib.Route) error) (perSecond float64, err error) {
	const between = 32 // routes, from one look at the clock to the next
	began, changes := time.Now(), 0
	for time.Since(began) < u.phase {
		for range between {
			if err := change(u.routes[u.next]); err != nil {
				return 0, err
			}
			u.next = (u.next + 1) % len(u.routes)
			changes += 2
		}
	}
	return float64(changes) / time.Since(began).Seconds(), nil
}

func (u *updater) changeOurs(r fib.Route) error {
	found, err := u.ours.Delete(r.Prefix)
	if err == nil && !found {
		err = fmt.Errorf("%v was not in the table, where it was before", r.Prefix)
	}
	if err != nil {
		return err
	}
	return u.ours.Insert(r.Prefix, r.NextHop)
}

func (u *updater) changeBart(r fib.Route) error {
	u.bart.Delete(r.Prefix)
	u.bart.Insert(r.Prefix, uint32(r.NextHop))
	return nil
}

// changeShort changes short routes for a phase, and returns the 99th percentile of how long a change takes, in µs.
func (u *updater) changeShort() (p99 float64, err error) {
	var took []float64
	for began := time.Now(); time.Since(began) < u.phase; {
		for i := range u.short {
			began := time.Now()
			if err := u.ours.Apply(u.short[i : i+1]); err != nil {
				return 0, err
			}
			took = append(took, float64(time.Since(began))/float64(time.Microsecond))
		}
	}
	slices.Sort(took)
	return took[len(took)*99/100], nil
}

// checkUpdated compares the answers of both tables after all changes, which have left the routes as they were.
func (b *fibBench) checkUpdated(u *updater) error {
	for _, f := range []ipFamily{family4, family6} {
		own := f.of(b.prefixes)
		if len(own) == 0 {
			continue
		}
		k := newKeySet(f, randomAddrs(rand.New(rand.NewPCG(fibSeed, 1)), f, own, u.keys))
		tables := &fibTables{family: f, ours: u.ours, table: u.bart}
		c := &cell{base: string(f) + ".random.%s.updated", addrs: k.addrs}
		c.contenders = append(tables.summers(k), tables.bartTable(k))
		if err := c.round(len(k.addrs), c.contenders, func(string, float64) {}); err != nil {
			return fmt.Errorf("after updates: %w", err)
		}
	}
	return nil
}
