package ipam

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// Of a segment that nodes share, each gives out its own range, less what the whole subnet reserves.
func TestRangeOfASharedSubnet(t *testing.T) {
	for _, c := range []struct {
		subnet, part, first string
		size                int
	}{
		{"10.60.0.0/24", "10.60.0.64/29", "10.60.0.64", 8},
		{"10.60.0.0/24", "10.60.0.0/29", "10.60.0.3", 5},     // network, gateway and switch are reserved
		{"10.60.0.0/24", "10.60.0.248/29", "10.60.0.248", 7}, // and the broadcast address
		{"fd00:60::/64", "fd00:60::1:0/126", "fd00:60::1:0", 4},
	} {
		p, err := NewRange(netip.MustParsePrefix(c.subnet), netip.MustParsePrefix(c.part))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[netip.Addr]bool{}
		for i := range c.size {
			a, err := p.Allocate(fmt.Sprint(i))
			if err != nil {
				t.Fatalf("%s: address %d of %d: %v", c.part, i+1, c.size, err)
			}
			if i == 0 && a.Addr().String() != c.first || !netip.MustParsePrefix(c.part).Contains(a.Addr()) || a.Bits() != p.Subnet().Bits() || seen[a.Addr()] {
				t.Errorf("%s: address %d is %v", c.part, i+1, a)
			}
			seen[a.Addr()] = true
		}
		if _, err := p.Allocate("one more"); err == nil || !strings.Contains(err.Error(), c.part) || !strings.Contains(err.Error(), "'ranges'") {
			t.Errorf("%s is used up: %v", c.part, err)
		}
	}
	for _, part := range []string{"10.61.0.0/29", "10.60.0.1/29", "10.60.0.0/16", "10.60.0.0/31"} {
		if _, err := NewRange(netip.MustParsePrefix("10.60.0.0/24"), netip.MustParsePrefix(part)); err == nil {
			t.Errorf("range %s of 10.60.0.0/24 was taken", part)
		}
	}
}
