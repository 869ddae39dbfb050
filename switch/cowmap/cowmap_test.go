package cowmap

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"tapyard/bench/seed"
)

// Go's own map is the slow model. Sizes far below the 200 keys make chains in which nodes are replaced and
// removed at the front, in the middle and at the end.
func TestAgainstGoMap(t *testing.T) {
	rng := seed.Rand(t)
	rounds := 20_000
	if testing.Short() {
		rounds = 2_000
	}
	for _, size := range []int{1, 3, 64, 1000} {
		m, model := New[int, int](size), map[int]int{}
		for i := range rounds {
			switch k := rng.IntN(200); rng.IntN(50) {
			case 0:
				old := func(_, v int) bool { return v < i-500 }
				before := len(model)
				maps.DeleteFunc(model, old)
				if got, want := m.DeleteFunc(old), before-len(model); got != want {
					t.Fatalf("size %d, step %d: DeleteFunc removed %d, want %d", size, i, got, want)
				}
			case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15:
				_, want := model[k]
				delete(model, k)
				if got := m.Delete(k); got != want {
					t.Fatalf("size %d, step %d: Delete(%d) = %t, want %t", size, i, k, got, want)
				}
			default:
				model[k] = i
				m.Store(k, i)
			}
			k := rng.IntN(200)
			want, wantOK := model[k]
			if got, ok := m.Load(k); got != want || ok != wantOK {
				t.Fatalf("size %d, step %d: Load(%d) = %d, %t, want %d, %t", size, i, k, got, ok, want, wantOK)
			}
		}
		count := 0
		for range m.All() {
			count++
		}
		if got := maps.Collect(m.All()); !maps.Equal(got, model) || count != len(model) {
			t.Errorf("size %d: All has %d entries, %v, want %v", size, count, got, model)
		}
	}
}

// In one chain, a reader always finds a key that is never removed, and never an older value than before of
// one that is replaced, while a writer changes everything around them.
func TestReadersAmongWrites(t *testing.T) {
	m := New[int, int](1)
	const fixed, growing = -1, -2
	m.Store(fixed, 7)
	m.Store(growing, 0)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for last := 0; ; {
				select {
				case <-stop:
					return
				default:
				}
				if v, ok := m.Load(fixed); !ok || v != 7 {
					t.Errorf("the fixed key: %d, %t", v, ok)
				}
				v, ok := m.Load(growing)
				if !ok || v < last {
					t.Errorf("the growing key: %d, %t after %d", v, ok, last)
				}
				last = v
			}
		})
	}
	rng := seed.Rand(t)
	for i := 1; i < 20_000; i++ {
		m.Store(growing, i)
		m.Store(rng.IntN(10), i)
		m.Delete(rng.IntN(10))
		if i%100 == 0 {
			m.DeleteFunc(func(k, _ int) bool { return k >= 0 })
		}
	}
	close(stop)
	readers.Wait()
}

type addrKey struct {
	vni  uint32
	addr netip.Addr
}

func addrKeys(n int) []addrKey {
	keys := make([]addrKey, n)
	for i := range keys {
		keys[i] = addrKey{uint32(i % 3), netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})}
	}
	return keys
}

func TestLoadAllocatesNothing(t *testing.T) {
	m := New[addrKey, int](64)
	keys := addrKeys(100)
	for i, k := range keys[:64] {
		m.Store(k, i)
	}
	hits := 0
	if n := testing.AllocsPerRun(10, func() {
		for _, k := range keys {
			if _, ok := m.Load(k); ok {
				hits++
			}
		}
	}); n != 0 || hits != 11*64 {
		t.Errorf("%v allocations in 100 loads, %d hits", n, hits)
	}
}

// Keys that differ in few bits, as MACs and addresses do, must spread: with as many keys as buckets a chain of
// 16 has a probability of about 65,536 × e⁻¹/16! ≈ 10⁻⁹.
func TestChainsStayShort(t *testing.T) {
	const n = 1 << 16
	m := New[addrKey, int](n)
	for i, k := range addrKeys(n) {
		m.Store(k, i)
	}
	for i := range m.buckets {
		length := 0
		for node := m.buckets[i].Load(); node != nil; node = node.next {
			length++
		}
		if length >= 16 {
			t.Errorf("bucket %d has %d entries", i, length)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	const n = 1 << 16
	m := New[addrKey, int](n)
	keys := addrKeys(n)
	for i, k := range keys {
		m.Store(k, i)
	}
	rand.New(rand.NewPCG(1, 0)).Shuffle(n, func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	i := 0
	for b.Loop() {
		if _, ok := m.Load(keys[i%n]); !ok {
			b.Fatal("lost a key")
		}
		i++
	}
}
