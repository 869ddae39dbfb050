package fib

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// FuzzTable runs a sequence of operations, 8 bytes each, against the slow model: what to do, the length, the
// next hop, and four bytes spread over the address. A View that is held meanwhile answers as one of the states
// since it was taken.
func FuzzTable(f *testing.F) {
	lowThresholds(f)
	growRoutes, shrinkRoutes = 6, 3
	f.Add([]byte("\x00\x18\x01\x00\x0a\x00\x00\x00" + "\x00\x20\x02\x00\x0a\x00\x00\x07" + "\x01\x20\x00\x00\x0a\x00\x00\x07"))
	f.Add([]byte("\x10\x40\x01\x00\x20\x01\x0d\xb8" + "\x10\x00\x02\x00\x00\x00\x00\x00" + "\x12\x80\x03\x00\x20\x01\x0d\xb8" + "\x13\x40\x03\x00\x20\x01\x0d\xb8"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		var d Domain
		reader := d.Register()
		reader.Online()
		tab, model := New(&d), golden{}
		v, since := tab.View(), []golden{{}}
		r := rand.New(rand.NewPCG(0, 0))
		var batch []Change
		ops = ops[:min(len(ops), 8*100)] // the model is quadratic
		for ; len(ops) >= 8; ops = ops[8:] {
			p, nh := fuzzPrefix(ops), NextHop(ops[2])
			err := checkChange(Change{Prefix: p, NextHop: nh})
			switch ops[0] & 7 {
			case 0, 1, 2:
				if got := tab.Insert(p, nh); (got == nil) != (err == nil) {
					t.Fatalf("Insert(%v, %d): %v, want %v", p, nh, got, err)
				}
				if err == nil {
					model.insert(p, nh)
				}
			case 3, 4:
				found, err := tab.Delete(p)
				if want := p == p.Masked() && model.delete(p); found != want {
					t.Fatalf("Delete(%v) = %v, %v, want %v", p, found, err, want)
				}
			case 5:
				batch = append(batch, Change{p, nh, nh%2 == 0})
			case 6:
				if tab.Apply(batch) == nil {
					for _, c := range batch {
						if c.Delete {
							model.delete(c.Prefix)
						} else {
							model.insert(c.Prefix, c.NextHop)
						}
					}
				}
				batch = nil
			case 7:
				reader.Quiesce()
				v, since = tab.View(), nil
			}
			addrs := probes(r, p.Masked())
			since = append(since, slices.Clone(model))
			for _, a := range addrs {
				if got := v.Lookup(a); !slices.ContainsFunc(since, func(g golden) bool { return g.lookup(a) == got }) {
					t.Fatalf("Lookup(%v) = %d in a View, in none of %d states since it was taken", a, got, len(since))
				}
			}
			checkLookups(t, tab.View(), model.lookup, addrs)
		}
		checkContents(t, tab, model)
		reader.Close()
		d.Reclaim()
		checkArena(t, tab)
	})
}

// fuzzPrefix makes a prefix of 8 bytes; it may have bits set beyond its length, but is valid and not mapped.
func fuzzPrefix(op []byte) netip.Prefix {
	if op[0]&0x10 == 0 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte(op[4:8])), int(op[1])%33)
		if op[0]&0x20 == 0 {
			p = p.Masked()
		}
		return p
	}
	a := [16]byte{0: op[4] | 1, 3: op[5], 7: op[6], 8: op[7], 15: op[3]}
	p := netip.PrefixFrom(netip.AddrFrom16(a), int(op[1])%129)
	if op[0]&0x20 == 0 {
		p = p.Masked()
	}
	return p
}
