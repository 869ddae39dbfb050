package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"tapyard/bench/seed"
)

// model is the slow truth about a small pool: a list of all addresses, looked through one by one.
type model struct {
	addrs []netip.Addr
	owner []string
	prev  int
}

// newModel lists the subnet by counting, and strikes out what the architecture reserves by name.
func newModel(subnet netip.Prefix, gateway, local string) *model {
	m := &model{}
	for a := subnet.Addr(); subnet.Contains(a); a = a.Next() {
		last := !subnet.Contains(a.Next())
		if a == subnet.Addr() || a.String() == gateway || a.String() == local || last && a.Is4() {
			continue
		}
		m.addrs = append(m.addrs, a)
	}
	m.owner, m.prev = make([]string, len(m.addrs)), len(m.addrs)-1
	return m
}

func (m *model) find(owner string) int {
	for i, o := range m.owner {
		if o == owner {
			return i
		}
	}
	return -1
}

func (m *model) allocate(owner string) (netip.Addr, bool) {
	if m.find(owner) >= 0 {
		return netip.Addr{}, false
	}
	for k := 1; k <= len(m.addrs); k++ {
		i := (m.prev + k) % len(m.addrs)
		if m.owner[i] == "" {
			m.owner[i], m.prev = owner, i
			return m.addrs[i], true
		}
	}
	return netip.Addr{}, false
}

func (m *model) claim(a netip.Addr, owner string) bool {
	had := m.find(owner)
	for i := range m.addrs {
		if m.addrs[i] != a {
			continue
		}
		if m.owner[i] != "" && m.owner[i] != owner || had >= 0 && had != i {
			return false
		}
		m.owner[i], m.prev = owner, i
		return true
	}
	return false
}

func (m *model) release(owner string) {
	if i := m.find(owner); i >= 0 {
		m.owner[i] = ""
	}
}

func mustNew(t *testing.T, subnet string) *Pool {
	t.Helper()
	p, err := New(netip.MustParsePrefix(subnet))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAgainstModel(t *testing.T) {
	rng := seed.Rand(t)
	steps := 20000
	if testing.Short() {
		steps = 2000
	}
	for _, c := range []struct{ subnet, gateway, local string }{
		{"10.244.1.0/29", "10.244.1.1", "10.244.1.2"},
		{"10.244.1.64/26", "10.244.1.65", "10.244.1.66"},
		{"192.168.255.0/24", "192.168.255.1", "192.168.255.2"},
		{"fd00:1::/126", "fd00:1::1", "fd00:1::2"},
		{"fd00:1::40/122", "fd00:1::41", "fd00:1::42"},
	} {
		t.Run(c.subnet, func(t *testing.T) {
			p, m := mustNew(t, c.subnet), newModel(netip.MustParsePrefix(c.subnet), c.gateway, c.local)
			if p.Gateway().String() != c.gateway {
				t.Fatalf("gateway %v, want %s", p.Gateway(), c.gateway)
			}
			for step := range steps {
				// One owner more than there are addresses, so that the pool runs full.
				owner := fmt.Sprint("c", rng.IntN(len(m.addrs)+1))
				switch op := rng.IntN(8); {
				case op < 4:
					got, err := p.Allocate(owner)
					want, ok := m.allocate(owner)
					if ok != (err == nil) || ok && got != netip.PrefixFrom(want, p.Subnet().Bits()) {
						t.Fatalf("step %d: Allocate(%s) = %v, %v; the model says %v, %t", step, owner, got, err, want, ok)
					}
				case op < 5:
					// Also addresses beside the subnet, and reserved ones.
					a := p.Subnet().Addr().Prev()
					for range rng.IntN(len(m.addrs) + 8) {
						a = a.Next()
					}
					if err, ok := p.Claim(a, owner), m.claim(a, owner); ok != (err == nil) {
						t.Fatalf("step %d: Claim(%v, %s) = %v; the model says %t", step, a, owner, err, ok)
					}
				default:
					p.Release(owner)
					m.release(owner)
				}
			}
		})
	}
}

// An address that was just given back must come last, or a peer's stale state meets the wrong pod.
func TestReleasedAddressComesLast(t *testing.T) {
	p := mustNew(t, "10.0.0.0/24")
	first, err := p.Allocate("first")
	if err != nil {
		t.Fatal(err)
	}
	p.Release("first")
	for i := range 251 { // 252 addresses are to be had
		got, err := p.Allocate(fmt.Sprint(i))
		if err != nil || got == first {
			t.Fatalf("allocation %d: %v, %v", i, got, err)
		}
	}
	if got, err := p.Allocate("last"); err != nil || got != first {
		t.Errorf("last allocation: %v, %v; want %v", got, err, first)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	p := mustNew(t, "10.0.0.0/29")
	for i := range 4 {
		if _, err := p.Allocate(fmt.Sprint("pod", i)); err != nil {
			t.Fatal(err)
		}
	}
	_, exhausted := p.Allocate("one too many")
	if !errors.Is(exhausted, ErrExhausted) {
		t.Errorf("exhaustion is %v, want ErrExhausted", exhausted)
	}
	for _, c := range []struct {
		err  error
		want []string
	}{
		{exhausted, []string{"10.0.0.0/29", "all 4", "podSubnets"}},
		{p.Claim(netip.MustParseAddr("10.0.0.3"), "thief"), []string{"10.0.0.3", "thief", "pod0"}},
		{p.Claim(netip.MustParseAddr("10.0.0.1"), "thief"), []string{"10.0.0.1", "thief", "10.0.0.0/29"}},
		{p.Claim(netip.MustParseAddr("fd00::3"), "thief"), []string{"fd00::3", "10.0.0.0/29"}},
		{p.Claim(netip.Addr{}, "thief"), []string{"thief"}},
		{newErr("10.0.0.9/24"), []string{"10.0.0.9/24", "10.0.0.0/24"}},
		{newErr("10.0.0.0/30"), []string{"10.0.0.0/30", "/29"}},
		{newErr("10.0.0.1/32"), []string{"10.0.0.1/32", "/29"}},
		{newErr("255.255.255.255/32"), []string{"/29"}},
		{newErr("fd00::/127"), []string{"fd00::/127", "/126"}},
		{newErr("::ffff:10.0.0.0/120"), []string{"10.244.1.0/24"}},
	} {
		if c.err == nil {
			t.Errorf("no error, want one with %q", c.want)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(c.err.Error(), w) {
				t.Errorf("%q does not say %q", c.err, w)
			}
		}
	}
	if _, err := New(netip.Prefix{}); err == nil {
		t.Error("New took the zero prefix")
	}
}

func newErr(subnet string) error {
	_, err := New(netip.MustParsePrefix(subnet))
	return err
}

// A pool that kept a bit per address would need 2^61 bytes for a /64.
func TestMemoryGrowsWithUse(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, subnet := range []string{"fd00::/64", "fd00::/8", "10.0.0.0/8"} {
		p := mustNew(t, subnet)
		for i := range 1000 {
			if _, err := p.Allocate(strconv.Itoa(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
		t.Errorf("3,000 addresses took %d bytes", grown)
	}
}
