// Package cowmap is the map under the switch's MAC and neighbour tables: readers take no lock, never retry and
// allocate nothing, whatever a writer does. Buckets are chains of immutable nodes; a writer copies the part of a
// chain that it changes and publishes it with one atomic store, so a reader walks the chain as it was or as it
// is, and a key that is replaced is never missing in between. Old nodes are left to the garbage collector.
//
// A fixed array of slots per bucket would save no cache miss, since keys and values would stand behind
// pointers all the same, and would need a rule for overflow; a chain has none. sync.Map can't be used for
// this: it takes its key as an interface, which costs an allocation per lookup.
package cowmap

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"sync/atomic"
)

// Map is a map from K to V. Load and All may be called from any goroutine at any time. Store, Delete and
// DeleteFunc need one writer at a time: the owner has a mutex anyway, because it decides by what it finds. The
// owner also bounds the number of entries. A Map must not be copied.
type Map[K comparable, V any] struct {
	// seed is the map's own and secret, so that nobody can choose keys that fall into one chain.
	seed    maphash.Seed
	buckets []atomic.Pointer[node[K, V]] // a power of two
}

// node is immutable once published.
type node[K comparable, V any] struct {
	key   K
	value V
	next  *node[K, V]
}

// New returns an empty map meant for size entries, at least 1. With that many, a lookup of a present key looks at
// 1.5 nodes on average, and the longest of 65,536 chains has about 8; with k times as many, at 1 + k/2.
// Memory is 8 bytes per bucket, which is size rounded up to a power of two.
func New[K comparable, V any](size int) *Map[K, V] {
	return &Map[K, V]{
		seed:    maphash.MakeSeed(),
		buckets: make([]atomic.Pointer[node[K, V]], 1<<bits.Len(uint(size-1))),
	}
}

// Load returns the value of k and whether there is one.
func (m *Map[K, V]) Load(k K) (value V, ok bool) {
	for n := m.bucket(k).Load(); n != nil; n = n.next {
		if n.key == k {
			return n.value, true
		}
	}
	return value, false
}

// Store sets the value of k.
func (m *Map[K, V]) Store(k K, v V) {
	b := m.bucket(k)
	rest := b.Load()
	if _, ok := m.Load(k); ok {
		rest = without(rest, k)
	}
	b.Store(&node[K, V]{k, v, rest})
}

// Delete removes k and says whether it was there.
func (m *Map[K, V]) Delete(k K) bool {
	_, ok := m.Load(k)
	if ok {
		b := m.bucket(k)
		b.Store(without(b.Load(), k))
	}
	return ok
}

// DeleteFunc removes the entries for which del is true, which is called once for each, and returns their number.
func (m *Map[K, V]) DeleteFunc(del func(K, V) bool) int {
	deleted := 0
	for i := range m.buckets {
		var kept *node[K, V]
		before := deleted
		head := m.buckets[i].Load()
		for n := head; n != nil; n = n.next {
			if del(n.key, n.value) {
				deleted++
			} else {
				kept = &node[K, V]{n.key, n.value, kept}
			}
		}
		if deleted > before {
			m.buckets[i].Store(kept)
		}
	}
	return deleted
}

// All ranges over the entries in no order. Each key comes once at most; of what writers change meanwhile, some
// may be seen and some not.
func (m *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for i := range m.buckets {
			for n := m.buckets[i].Load(); n != nil; n = n.next {
				if !yield(n.key, n.value) {
					return
				}
			}
		}
	}
}

func (m *Map[K, V]) bucket(k K) *atomic.Pointer[node[K, V]] {
	return &m.buckets[maphash.Comparable(m.seed, k)&uint64(len(m.buckets)-1)]
}

// without returns the chain less the node of k, which is in it. What lies behind that node is shared.
func without[K comparable, V any](n *node[K, V], k K) *node[K, V] {
	if n.key == k {
		return n.next
	}
	return &node[K, V]{n.key, n.value, without(n.next, k)}
}
