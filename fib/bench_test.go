package fib

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

const (
	benchKeys  = 1 << 16 // random, so that the answers don't stay in the branch predictor
	benchBurst = 64
)

// benchTables calls f with tables of 10, 1,000 and all routes of one family, and random addresses under
// random routes of it.
func benchTables(b *testing.B, f family, run func(b *testing.B, v View, addrs []netip.Addr)) {
	routes := slices.DeleteFunc(bgpRoutes(b), func(r Route) bool { return familyOf(r.Prefix.Addr()) != f })
	r := rand.New(rand.NewPCG(1, 1))
	r.Shuffle(len(routes), func(i, j int) { routes[i], routes[j] = routes[j], routes[i] })
	for _, n := range []int{10, 1000, len(routes)} {
		var d Domain
		tab := New(&d)
		if err := tab.Replace(routes[:n]); err != nil {
			b.Fatal(err)
		}
		addrs := make([]netip.Addr, benchKeys)
		for i := range addrs {
			addrs[i] = probes(r, routes[r.IntN(n)].Prefix)[2]
		}
		b.Run(fmt.Sprintf("routes=%d", n), func(b *testing.B) { run(b, tab.View(), addrs) })
	}
}

func BenchmarkLookup4(b *testing.B) {
	benchTables(b, ipv4, func(b *testing.B, v View, addrs []netip.Addr) {
		keys, out := make([]uint32, len(addrs)), make([]NextHop, benchBurst)
		for i, a := range addrs {
			_, k := split(a)
			keys[i] = uint32(k.Hi >> 32)
		}
		b.Run("single", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				out[i%benchBurst] = v.Lookup4(keys[i%benchKeys])
			}
		})
		b.Run("batch", func(b *testing.B) {
			for i := 0; b.Loop(); i += benchBurst {
				v.Lookup4Batch(keys[i%benchKeys:][:benchBurst], out)
			}
			perLookup(b)
		})
	})
}

func BenchmarkLookup6(b *testing.B) {
	benchTables(b, ipv6, func(b *testing.B, v View, addrs []netip.Addr) {
		keys, out := make([]Key6, len(addrs)), make([]NextHop, benchBurst)
		for i, a := range addrs {
			_, keys[i] = split(a)
		}
		b.Run("single", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				k := keys[i%benchKeys]
				out[i%benchBurst] = v.Lookup6(k.Hi, k.Lo)
			}
		})
		b.Run("batch", func(b *testing.B) {
			for i := 0; b.Loop(); i += benchBurst {
				v.Lookup6Batch(keys[i%benchKeys:][:benchBurst], out)
			}
			perLookup(b)
		})
	})
}

func perLookup(b *testing.B) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchBurst, "ns/lookup")
}

// BenchmarkChange gives routes of a full table another next hop, one by one.
func BenchmarkChange(b *testing.B) {
	routes := bgpRoutes(b)
	var d Domain
	tab := New(&d)
	if err := tab.Replace(routes); err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	r.Shuffle(len(routes), func(i, j int) { routes[i], routes[j] = routes[j], routes[i] })
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := tab.Insert(routes[i%len(routes)].Prefix, NextHop(1+i%int(MaxNextHop))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReplace loads the whole table.
func BenchmarkReplace(b *testing.B) {
	routes := bgpRoutes(b)
	var d Domain
	tab := New(&d)
	for b.Loop() {
		if err := tab.Replace(routes); err != nil {
			b.Fatal(err)
		}
	}
}
