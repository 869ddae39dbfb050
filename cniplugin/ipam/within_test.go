package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tapyard/bench/seed"
)

// Parts of a pool give out their own addresses in turn, the pool itself gives out what nobody has set aside,
// and nothing is given out twice. The truth is a map, and a walk over all addresses when a pool says that it
// is exhausted.
func TestPartsAgainstModel(t *testing.T) {
	rng := seed.Rand(t)
	whole := mustNew(t, "10.0.0.0/26")
	parts := []netip.Prefix{netip.MustParsePrefix("10.0.0.16/29"), netip.MustParsePrefix("10.0.0.56/29"), netip.MustParsePrefix("10.0.0.0/29")}
	pools := []*Pool{whole}
	for _, part := range parts {
		p, err := whole.Within(part)
		if err != nil {
			t.Fatal(err)
		}
		pools = append(pools, p)
	}
	holders := map[netip.Addr]string{}
	var free [4]bool
	for step := range 5000 {
		owner := fmt.Sprint("c", rng.IntN(100))
		i := rng.IntN(len(pools))
		if rng.IntN(8) == 0 {
			pools[i].Release(owner)
			for a, o := range holders {
				if o == owner {
					delete(holders, a)
				}
			}
			continue
		}
		var aside []netip.Prefix
		if i == 0 {
			aside = parts
		}
		may := func(a netip.Addr) bool { // a pod's address that this pool may give
			b := a.As4()[3]
			inPart := func(p netip.Prefix) bool { return p.Contains(a) }
			return b >= 3 && b < 63 && holders[a] == "" && (i > 0 && parts[i-1].Contains(a) || i == 0 && !inPart(parts[0]) && !inPart(parts[1]) && !inPart(parts[2]))
		}
		got, err := pools[i].Allocate(owner, aside...)
		switch {
		case err == nil && (!may(got.Addr()) || got.Bits() != 26):
			t.Fatalf("step %d: pool %d gave %v; holders %v", step, i, got, holders)
		case err == nil:
			holders[got.Addr()] = owner
		case errors.Is(err, ErrExhausted):
			free[i] = true
			for a := netip.MustParseAddr("10.0.0.0"); whole.Subnet().Contains(a); a = a.Next() {
				if may(a) {
					t.Fatalf("step %d: pool %d says %v, and %v is free", step, i, err, a)
				}
			}
		case !strings.Contains(err.Error(), "already"):
			t.Fatalf("step %d: %v", step, err)
		}
	}
	if free != [4]bool{true, true, true, true} {
		t.Errorf("pools that ran full: %v; want each", free)
	}
}

// A part of a huge pool is stepped over, not walked through.
func TestSetAsideIsSteppedOver(t *testing.T) {
	p := mustNew(t, "fd00::/64")
	aside := netip.MustParsePrefix("fd00::/80")
	got, err := p.Allocate("a", aside)
	if err != nil || got.Addr() != netip.MustParseAddr("fd00::1:0:0:0") {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"fd00:1::/80", "fd00::/48", "fd00::1/80", "10.0.0.0/26"} {
		if _, err := p.Within(netip.MustParsePrefix(bad)); err == nil || !strings.Contains(err.Error(), bad) || !strings.Contains(err.Error(), "fd00::/64") {
			t.Errorf("part %s: %v; want an error with both", bad, err)
		}
	}
}
