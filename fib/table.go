package fib

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
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

// MaxRoutes is how many routes one table may hold, both families together: four times the Internet's. An offset
// can name 2^28 words, 64 for each.
const MaxRoutes = 1 << 22

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
	count   atomic.Int64

	mu    sync.Mutex // held by the one writer
	ribs  [2]rib     // by family
	arena *arena     // what current.words is part of
	limbo []uint32   // pointers to blocks that readers may still know, to be retired together
	grace bool       // earlier ones wait for readers: there is one callback at a time
}

// version is what a View shows. Its values change in place by single stores, each to a value that is right for
// all addresses that come to it.
type version struct {
	base           unsafe.Pointer // of words
	words          []uint32       // of the arena, up to its capacity: blocks are added later
	root4, root6   []uint32
	shift4, shift6 uint8 // by which an address, of IPv6 its upper half, is shifted to select a root's position
}

// retireBlocks is how many blocks are retired together. A grace period costs as much as a change.
const retireBlocks = 64

// New returns an empty table whose readers are members of d, which must not be nil.
func New(d *Domain) *Table {
	t := &Table{domain: d, ribs: [2]rib{newRIB(ipv4), newRIB(ipv6)}}
	e := edit{ribs: &t.ribs}
	e.rebuild()
	t.publish(&e)
	return t
}

// Insert adds a route, or replaces the next hop of the one with the same prefix.
func (t *Table) Insert(p netip.Prefix, nh NextHop) error {
	change := [1]Change{{Prefix: p, NextHop: nh}}
	return t.Apply(change[:])
}

// Delete removes the route with exactly this prefix and reports whether there was one.
func (t *Table) Delete(p netip.Prefix) (found bool, err error) {
	if err := checkPrefix(p); err != nil {
		return false, err
	}
	f, k := split(p.Addr())
	t.update(true, func(e *edit) { found = e.apply(f, route{key: k, length: uint32(p.Bits())}, true) })
	return found, nil
}

// Apply makes all changes, in order, or none: on an error nothing has changed. Of several changes, a View that was
// taken before shows none and one taken afterwards all. A single change may show in Views that exist, even in one
// that doesn't show an earlier batch; to each lookup it shows wholly or not at all. Deleting a prefix that isn't
// there is no error. changes is only read, and not kept.
func (t *Table) Apply(changes []Change) error {
	for _, c := range changes {
		if err := checkChange(c); err != nil {
			return err
		}
	}
	var err error
	t.update(len(changes) == 1, func(e *edit) {
		if t.Len()+len(changes) > MaxRoutes {
			if err = checkRoom(e.countAfter(changes)); err != nil {
				return
			}
		}
		for _, c := range changes {
			f, k := split(c.Prefix.Addr())
			e.apply(f, route{k, uint32(c.Prefix.Bits()), uint32(c.NextHop)}, c.Delete)
		}
	})
	return err
}

// Replace makes the table's contents exactly these routes; when a prefix is listed twice the later entry
// counts. It is the bulk load: built aside and published at once, fastest when routes rise by address and
// length. On an error nothing has changed. routes is only read, and not kept.
func (t *Table) Replace(routes []Route) error {
	var counts [2]int
	for _, r := range routes {
		if err := checkChange(Change{Prefix: r.Prefix, NextHop: r.NextHop}); err != nil {
			return err
		}
		counts[familyOf(r.Prefix.Addr())]++
	}
	if err := checkRoom(len(routes)); err != nil {
		return err
	}
	byFamily := [2][]route{make([]route, 0, counts[ipv4]), make([]route, 0, counts[ipv6])}
	for _, r := range routes {
		f, k := split(r.Prefix.Addr())
		byFamily[f] = append(byFamily[f], route{k, uint32(r.Prefix.Bits()), uint32(r.NextHop)})
	}
	t.update(false, func(e *edit) {
		for f := range family(2) {
			t.ribs[f] = newRIB(f)
			t.ribs[f].load(ordered(byFamily[f]))
		}
		e.rebuild()
	})
	return nil
}

// ordered sorts routes by address and length, of equal prefixes only the last one.
func ordered(routes []route) []route {
	order := func(a, b route) int {
		switch {
		case before(a.key, a.length, b.key, b.length):
			return -1
		case a.key == b.key && a.length == b.length:
			return 0
		}
		return 1
	}
	rises := true
	for i := 1; i < len(routes) && rises; i++ {
		rises = order(routes[i-1], routes[i]) < 0
	}
	if rises {
		return routes
	}
	slices.SortStableFunc(routes, order)
	last := routes[:0]
	for i, r := range routes {
		if i+1 == len(routes) || order(r, routes[i+1]) != 0 {
			last = append(last, r)
		}
	}
	return last
}

// update runs f on an edit of the current version, publishes what f did, and retires what it replaced.
func (t *Table) update(inPlace bool, f func(*edit)) {
	t.mu.Lock()
	v := t.current.Load()
	e := edit{ribs: &t.ribs, arena: t.arena, roots: [2][]uint32{v.root4, v.root6},
		inPlace: inPlace, known: cap(t.arena.words), fresh: uint32(len(t.arena.words))}
	f(&e)
	if t.ribs[ipv4].count+t.ribs[ipv6].count == 0 && len(e.arena.words) > arenaHead {
		e.rebuild() // an empty table has the memory that it began with
	}
	if e.owned != [2]bool{} || e.moved() {
		t.publish(&e)
	}
	t.count.Store(int64(t.ribs[ipv4].count + t.ribs[ipv6].count))
	t.limbo = append(t.limbo, e.retired...)
	retire, wait := t.due()
	t.mu.Unlock()
	switch { // without t.mu, which the callback takes
	case retire != nil:
		t.domain.Retire(retire)
	case wait:
		t.domain.Reclaim()
	}
}

// due returns what gives the blocks in limbo back after a grace period if that is to begin now, or reports that
// they wait for the end of another one. In a small table it begins at once.
func (t *Table) due() (retire func(), wait bool) {
	if n := len(t.limbo); n == 0 || n < retireBlocks && t.Len() >= shrinkRoutes {
		return nil, false
	}
	if t.grace {
		return nil, true
	}
	a, blocks := t.arena, t.limbo
	t.limbo, t.grace = nil, true
	return func() { t.recycle(a, blocks) }, false
}

// publish makes a version of the edit the current one. Roots that point into an array which has moved must not
// be those of readers of the old one.
func (t *Table) publish(e *edit) {
	if t.arena != e.arena {
		if t.arena != nil {
			t.arena.words = nil // callbacks that still name the old arena shall not keep its memory
		}
		t.arena, t.limbo = e.arena, nil
	}
	for f := range e.roots {
		if !e.owned[f] && e.moved() {
			e.roots[f] = slices.Clone(e.roots[f])
		}
	}
	words, root4, root6 := e.arena.words, e.roots[ipv4], e.roots[ipv6]
	t.current.Store(&version{
		base: unsafe.Pointer(unsafe.SliceData(words)), words: words[:cap(words)], root4: root4, root6: root6,
		shift4: uint8(32 - rootBits(root4)), shift6: uint8(64 - rootBits(root6)),
	})
}

// recycle puts blocks that no reader can reach any more on a's free lists. An arena that was left behind by a
// rebuild needs no free lists; the collector takes it whole.
func (t *Table) recycle(a *arena, blocks []uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.grace = false
	if a != t.arena {
		return
	}
	for _, w := range blocks {
		a.put(w)
	}
}

// All yields the routes that the table has when the iteration begins, IPv4 before IPv6, by address and then
// length. It works on a copy of them, some 8 bytes each of IPv4 and 20 of IPv6.
func (t *Table) All() iter.Seq2[netip.Prefix, NextHop] {
	return func(yield func(netip.Prefix, NextHop) bool) {
		t.mu.Lock()
		ribs := [2]rib{t.ribs[ipv4].clone(), t.ribs[ipv6].clone()}
		t.mu.Unlock()
		for f := range family(2) {
			for c := (cursor{}); ; c = ribs[f].next(c) {
				at, ok := ribs[f].at(c)
				if !ok {
					break
				}
				if !yield(join(f, at.key, int(at.length)), NextHop(at.hop)) {
					return
				}
			}
		}
	}
}

// Len is the number of routes, both families.
func (t *Table) Len() int { return int(t.count.Load()) }

// Memory is the number of bytes that lookups reach, and of all that the table holds: besides, the writer's
// routes, free blocks, and those that wait for readers. A table of less than 1,000 routes holds at most 64 KiB.
// Arrays that growth or a rebuild left behind are not counted; the collector takes them when no View names
// them.
func (t *Table) Memory() (readers, total int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const fixed = int(unsafe.Sizeof(Table{}) + unsafe.Sizeof(arena{}) + unsafe.Sizeof(version{}))
	v := t.current.Load()
	roots := (len(v.root4) + len(v.root6)) * 4
	total = fixed + roots + cap(t.arena.words)*4 + cap(t.limbo)*4
	for f := range t.ribs {
		total += t.ribs[f].memory()
	}
	return roots + t.arena.live*4, total
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

func checkRoom(routes int) error {
	if routes > MaxRoutes {
		return fmt.Errorf("%w: it would hold %d routes, at most %d: aggregate routes", ErrFull, routes, MaxRoutes)
	}
	return nil
}
