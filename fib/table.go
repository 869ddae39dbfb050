package fib

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"sync"
	"sync/atomic"
	"unsafe"
)

// NextHop is the index of an adjacency, 1 to MaxNextHop; what it stands for is the caller's business.
// None, the zero value, means no route.
type NextHop uint32

const (
	// None is the answer of a lookup that no route matches. It can't be inserted.
	None NextHop = 0
	// MaxNextHop is the largest next hop: an index of 24 bits.
	MaxNextHop NextHop = 1<<24 - 1
)

// MaxRoutes is how many routes one table may hold, both families together. A route costs at most two nodes of
// 8 words (a leaf and the fork above it), and an arena is at most 2.5 times as large as its nodes in use (see
// Memory): 2^26 × 16 × 2.5 words stay below the 2^32 that an offset can name.
const MaxRoutes = 1 << 26

// Errors of Insert, Delete, Apply and Replace, wrapped with the prefix concerned and the way out. After any
// of them the table is as it was.
var (
	// ErrPrefix: the prefix is the zero Prefix, has bits set beyond its length, or is IPv4-mapped IPv6.
	ErrPrefix = errors.New("fib: bad prefix")
	// ErrNextHop: the next hop is None or above MaxNextHop.
	ErrNextHop = errors.New("fib: bad next hop")
	// ErrFull: the table would hold more than MaxRoutes routes.
	ErrFull = errors.New("fib: table full")
)

// Route is one entry of a table: frames for addresses under Prefix go to NextHop, unless a longer prefix
// matches. An IPv4-mapped prefix (::ffff:a.b.c.d/96+n) is refused: it must be written as IPv4.
type Route struct {
	Prefix  netip.Prefix // masked: no bits set beyond its length
	NextHop NextHop      // 1 to MaxNextHop
}

// Change is one step of Apply.
type Change struct {
	Prefix  netip.Prefix // as in Route
	NextHop NextHop      // as in Route; ignored when Delete is set
	Delete  bool         // remove the prefix instead of inserting or replacing it
}

// Table is the longest-prefix-match table of one VNI, IPv4 and IPv6. All methods may be called from any
// goroutine; writers take turns on a mutex, and View and what it offers are wait-free. See the package
// comment for why readers are safe. A Table must not be copied.
type Table struct {
	domain  *Domain
	current atomic.Pointer[version]

	mu    sync.Mutex // held by the one writer
	arena *arena     // what current.words is part of
}

// version is one state of the table, immutable once published, except that words reachable only from earlier
// versions are re-used after a grace period.
type version struct {
	words []uint32
	roots [2]uint32 // by family
	count int
}

// New returns an empty table whose readers are members of d, which must not be nil.
func New(d *Domain) *Table {
	t := &Table{domain: d, arena: newArena(0)}
	t.current.Store(&version{words: t.arena.words})
	return t
}

// Insert adds a route, or replaces the next hop of the one with the same prefix.
func (t *Table) Insert(p netip.Prefix, nh NextHop) error {
	return t.Apply([]Change{{Prefix: p, NextHop: nh}})
}

// Delete removes the route with exactly this prefix and reports whether there was one.
func (t *Table) Delete(p netip.Prefix) (found bool, err error) {
	if err := checkPrefix(p); err != nil {
		return false, err
	}
	t.update(func(e *edit) { found = e.delete(p) })
	return found, nil
}

// Apply makes all changes, in order, or none: on an error nothing has changed. A View has seen all of them or
// none. Deleting a prefix that isn't there is no error. changes is only read, and not kept.
func (t *Table) Apply(changes []Change) error {
	inserts := 0
	for _, c := range changes {
		if err := checkChange(c); err != nil {
			return err
		}
		if !c.Delete {
			inserts++
		}
	}
	var err error
	t.update(func(e *edit) {
		if err = checkRoom(e.count, inserts); err != nil {
			return
		}
		for _, c := range changes {
			e.apply(c)
		}
	})
	return err
}

// Replace makes the table's contents exactly these routes; when a prefix is listed twice the later entry
// counts. It is the bulk load: built aside, published at once, packed without slack between nodes. On an error
// nothing has changed. routes is only read, and not kept.
func (t *Table) Replace(routes []Route) error {
	for _, r := range routes {
		if err := checkChange(Change{Prefix: r.Prefix, NextHop: r.NextHop}); err != nil {
			return err
		}
	}
	if err := checkRoom(0, len(routes)); err != nil {
		return err
	}
	t.update(func(e *edit) {
		e.clear()
		for _, r := range routes {
			e.insert(r.Prefix, r.NextHop)
		}
		e.compact()
	})
	return nil
}

// update runs f on an edit of the current version, publishes the result if f changed anything, and retires
// what it replaced: one callback per update, called without t.mu (it takes that lock itself).
func (t *Table) update(f func(*edit)) {
	t.mu.Lock()
	old := t.current.Load()
	e := newEdit(t.arena, old)
	f(e)
	e.shrinkEmpty()
	if e.roots == old.roots && e.arena == t.arena { // a replaced root is never re-used within the edit
		t.mu.Unlock()
		return
	}
	if t.arena != e.arena {
		t.arena.words = nil // callbacks that still name the old arena shall not keep its memory
		t.arena = e.arena
	}
	t.current.Store(&version{words: e.arena.words, roots: e.roots, count: e.count})
	t.mu.Unlock()
	if len(e.retired) > 0 {
		t.domain.Retire(func() { t.recycle(e.arena, e.retired) })
	}
}

// recycle puts blocks that no reader can reach any more on a's free lists. An arena that was left behind by a
// compaction needs no free lists; the collector takes it whole.
func (t *Table) recycle(a *arena, blocks []uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a != t.arena {
		return
	}
	for _, off := range blocks {
		a.put(off)
	}
}

// All yields the routes of one version of the table, IPv4 before IPv6, by address and then length. Routes may
// be changed meanwhile; the iteration doesn't see it. A loop that stays in its body holds up reclamation.
func (t *Table) All() iter.Seq2[netip.Prefix, NextHop] {
	return func(yield func(netip.Prefix, NextHop) bool) {
		r := t.domain.Register()
		defer r.Close()
		r.Online()
		t.current.Load().walk(yield)
	}
}

// Len is the number of routes, both families.
func (t *Table) Len() int { return t.current.Load().count }

// Memory is the number of bytes that the table holds: nodes in use, nodes waiting for readers, and free space.
// It stays below 2.5 times the nodes in use plus 16 KiB: compaction sets in at twice plus 8 KiB, the array grows
// by an eighth, and one change makes 7 KiB of nodes at most. An array that growth or compaction left behind is
// not counted; the collector takes it when no View names it.
func (t *Table) Memory() int {
	const fixed = unsafe.Sizeof(Table{}) + unsafe.Sizeof(arena{}) + unsafe.Sizeof(version{})
	return int(fixed) + cap(t.current.Load().words)*4
}

func checkChange(c Change) error {
	if err := checkPrefix(c.Prefix); err != nil {
		return err
	}
	if c.Delete || c.NextHop != None && c.NextHop <= MaxNextHop {
		return nil
	}
	return fmt.Errorf("%w: %v via %d: need 1 to %d; delete a route to make it unreachable", ErrNextHop, c.Prefix, c.NextHop, MaxNextHop)
}

func checkPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return fmt.Errorf("%w: %v: the zero Prefix or a length beyond the address", ErrPrefix, p)
	case p != p.Masked():
		return fmt.Errorf("%w: %v has bits set beyond its length: write %v, or the address with its full length", ErrPrefix, p, p.Masked())
	case p.Addr().Is4In6(): // masked, so its length is at least 96
		return fmt.Errorf("%w: %v is IPv4-mapped: write %v", ErrPrefix, p, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96))
	}
	return nil
}

func checkRoom(have, more int) error {
	if have+more > MaxRoutes {
		return fmt.Errorf("%w: %d routes and %d insertions, at most %d: split the batch or aggregate routes", ErrFull, have, more, MaxRoutes)
	}
	return nil
}
