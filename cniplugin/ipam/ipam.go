// Package ipam hands out the addresses of one pod subnet. It is pure and in memory: the caller keeps the
// records, and claims their addresses again after a restart. Allocation is next-fit, so that an address
// comes back only after all others had their turn: a peer's stale neighbour entry or connection then finds
// nobody instead of the wrong pod. Memory grows with the addresses in use, not with the subnet.
package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
)

// ErrExhausted is wrapped by Allocate's error when every address of the subnet is in use.
var ErrExhausted = errors.New("no address is free")

// ErrTaken is wrapped by Claim's error when another owner has the address.
var ErrTaken = errors.New("it is taken")

// reserved counts the addresses at the bottom of a subnet that no pod gets: the network itself (in IPv6
// the subnet-router anycast address, RFC 4291 section 2.6.1), the gateway and the switch.
const reserved = 3

// Pool is one subnet, or a part of one. All methods may be called from any goroutine.
type Pool struct {
	subnet      netip.Prefix
	part        netip.Prefix // of subnet: what this pool gives out
	first, last netip.Addr   // what pods may get, inclusive
	size        uint64       // how many those are, at most math.MaxUint64
	prev        netip.Addr   // the search begins behind it; under mu

	*holders
}

// holders says who has which address of a subnet; the parts of it share them.
type holders struct {
	mu     sync.Mutex
	owners map[netip.Addr]string
	addrs  map[string]netip.Addr
}

// NewRange makes a pool of the part of a subnet that is this node's to give, when several nodes share one
// segment. An address that is reserved in the subnet is not given out either.
func NewRange(subnet, part netip.Prefix) (*Pool, error) {
	p, err := New(subnet)
	if err != nil {
		return nil, err
	}
	return p.Within(part)
}

// Within makes a pool of a part of p. The two know of each other's owners, of which each has one address in
// all of them.
func (p *Pool) Within(part netip.Prefix) (*Pool, error) {
	if part != part.Masked() || part.Bits() < p.part.Bits() || !p.part.Contains(part.Addr()) {
		return nil, fmt.Errorf("range %v: want a prefix without host bits inside of %v", part, p.describe())
	}
	q := &Pool{subnet: p.subnet, part: part, first: p.first, last: p.last, holders: p.holders}
	if first := part.Addr(); q.first.Less(first) {
		q.first = first
	}
	if last := lastOf(part); last.Less(q.last) {
		q.last = last
	}
	if q.last.Less(q.first) {
		return nil, fmt.Errorf("range %v has no address for a pod beside those that subnet %v reserves", part, p.subnet)
	}
	q.prev, q.size = q.last, distance(q.first, q.last)
	return q, nil
}

// describe says what the pool is.
func (p *Pool) describe() string {
	if p.part == p.subnet {
		return fmt.Sprintf("subnet %v", p.subnet)
	}
	return fmt.Sprintf("range %v of subnet %v", p.part, p.subnet)
}

// distance returns how many addresses lie from a to b, both included; 2^64 and above become the highest
// number there is.
func distance(a, b netip.Addr) uint64 {
	x, y := a.As16(), b.As16()
	if [8]byte(x[:8]) != [8]byte(y[:8]) {
		return math.MaxUint64
	}
	n := binary.BigEndian.Uint64(y[8:]) - binary.BigEndian.Uint64(x[8:])
	if n == math.MaxUint64 {
		return n
	}
	return n + 1
}

// New makes a pool of an IPv4 subnet of /29 or shorter, or an IPv6 one of /126 or shorter. The prefix must
// have no host bits.
func New(subnet netip.Prefix) (*Pool, error) {
	if !subnet.IsValid() || subnet.Addr().Is4In6() {
		return nil, fmt.Errorf("pod subnet %v: want a prefix such as 10.244.1.0/24 or fd00:10:244:1::/64", subnet)
	}
	if masked := subnet.Masked(); masked != subnet {
		return nil, fmt.Errorf("pod subnet %v has host bits; did you mean %v?", subnet, masked)
	}
	first := subnet.Addr()
	for range reserved {
		first = first.Next()
	}
	last := lastOf(subnet)
	if subnet.Addr().Is4() {
		last = last.Prev() // the broadcast address
	}
	if !first.IsValid() || !subnet.Contains(first) || last.Less(first) {
		return nil, fmt.Errorf("pod subnet %v has no address for a pod: use /29 or shorter for IPv4, /126 or shorter for IPv6", subnet)
	}
	return &Pool{
		subnet: subnet, part: subnet, first: first, last: last, size: distance(first, last),
		prev: last, holders: &holders{owners: map[netip.Addr]string{}, addrs: map[string]netip.Addr{}},
	}, nil
}

// lastOf returns the highest address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Subnet returns the prefix that the pool was made of.
func (p *Pool) Subnet() netip.Prefix { return p.subnet }

// Gateway returns the pods' next hop: the subnet's first address behind the network's own.
func (p *Pool) Gateway() netip.Addr { return p.subnet.Addr().Next() }

// Allocate gives the owner an address that is free and in none of the prefixes that are set aside, with the
// subnet's length. An owner has at most one.
func (p *Pool) Allocate(owner string, aside ...netip.Prefix) (netip.Prefix, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.addrs[owner]; ok {
		return netip.Prefix{}, fmt.Errorf("allocate in %v: %s has %v already; release it first", p.subnet, owner, a)
	}
	a, ok := p.next(aside)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("allocate in %w", p.exhausted(aside))
	}
	p.give(a, owner)
	return netip.PrefixFrom(a, p.subnet.Bits()), nil
}

// Full returns nil while there is an address to allocate, or an error that names the pool and wraps ErrExhausted.
func (p *Pool) Full() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.next(nil); !ok {
		return fmt.Errorf("pool %w", p.exhausted(nil))
	}
	return nil
}

// next finds the free address behind the last one. Each step of the search meets another owner's address or
// steps over what is set aside, once before and once behind the pool's end, so that it ends.
func (p *Pool) next(aside []netip.Prefix) (a netip.Addr, ok bool) {
	a = p.after(p.prev)
	for range len(p.owners) + 2*len(aside) + 1 {
		over := slices.IndexFunc(aside, func(s netip.Prefix) bool { return s.Contains(a) })
		switch {
		case over >= 0 && lastOf(aside[over]).Less(p.last):
			a = lastOf(aside[over]).Next()
		case over >= 0:
			a = p.first
		case p.owners[a] != "":
			a = p.after(a)
		default:
			return a, true
		}
	}
	return a, false
}

func (p *Pool) exhausted(aside []netip.Prefix) error {
	advice := "subnet ('podSubnets')"
	if p.part != p.subnet {
		advice = "range ('ranges' of the network, or 'ranges' or 'subnet' of the conflist)"
	}
	but := ""
	if len(aside) > 0 {
		but = fmt.Sprintf(" or set aside for other conflists %v", aside)
	}
	return fmt.Errorf("%v: %w, all %d are used%s; delete pods, or give the node a larger %s",
		p.part, ErrExhausted, p.size, but, advice)
}

// Claim gives the owner this very address, as a record says that it had. Claims in the order in which the
// records were made let the next Allocate go on where the last one stopped.
func (p *Pool) Claim(a netip.Addr, owner string) error {
	if a.Less(p.first) || p.last.Less(a) || a.BitLen() != p.first.BitLen() || a.Zone() != "" {
		return fmt.Errorf("claim %v for %s: it is not one of %v, whose pods have %v to %v", a, owner, p.describe(), p.first, p.last)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if holder := p.owners[a]; holder != "" && holder != owner {
		return fmt.Errorf("claim %v for %s: %w: %s has it", a, owner, ErrTaken, holder)
	}
	if has, ok := p.addrs[owner]; ok && has != a {
		return fmt.Errorf("claim %v for %s: it has %v already", a, owner, has)
	}
	p.give(a, owner)
	return nil
}

// Release takes the owner's address back; an owner that has none is no error.
func (p *Pool) Release(owner string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.owners, p.addrs[owner])
	delete(p.addrs, owner)
}

// Owners returns who has an address, in no order.
func (p *Pool) Owners() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.addrs))
}

// Owned returns the owner's address, if it has one.
func (p *Pool) Owned(owner string) (netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.addrs[owner]
	return a, ok
}

func (p *Pool) give(a netip.Addr, owner string) {
	p.owners[a], p.addrs[owner], p.prev = owner, a, a
}

func (p *Pool) after(a netip.Addr) netip.Addr {
	if a == p.last {
		return p.first
	}
	return a.Next()
}
