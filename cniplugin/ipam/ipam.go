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

// reserved counts the addresses at the bottom of a subnet that no pod gets: the network itself (in IPv6
// the subnet-router anycast address, RFC 4291 section 2.6.1), the gateway and the switch.
const reserved = 3

// Pool is one subnet. All methods may be called from any goroutine.
type Pool struct {
	subnet      netip.Prefix
	part        netip.Prefix // of subnet: what this node gives out
	first, last netip.Addr   // what pods may get, inclusive
	size        uint64       // how many those are, at most math.MaxUint64

	mu     sync.Mutex
	owners map[netip.Addr]string
	addrs  map[string]netip.Addr
	prev   netip.Addr // the search begins behind it
}

// NewRange makes a pool of the part of a subnet that is this node's to give, when several nodes share one
// segment. An address that is reserved in the subnet is not given out either.
func NewRange(subnet, part netip.Prefix) (*Pool, error) {
	p, err := New(subnet)
	if err != nil {
		return nil, err
	}
	if part != part.Masked() || part.Bits() < subnet.Bits() || !subnet.Contains(part.Addr()) {
		return nil, fmt.Errorf("range %v: want a prefix without host bits inside of subnet %v", part, subnet)
	}
	if first := part.Addr(); p.first.Less(first) {
		p.first = first
	}
	if last := lastOf(part); last.Less(p.last) {
		p.last = last
	}
	if p.last.Less(p.first) {
		return nil, fmt.Errorf("range %v has no address for a pod beside those that subnet %v reserves", part, subnet)
	}
	p.part, p.prev, p.size = part, p.last, distance(p.first, p.last)
	return p, nil
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
		owners: map[netip.Addr]string{}, addrs: map[string]netip.Addr{}, prev: last,
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

// Allocate gives the owner an address that is free, with the subnet's length. An owner has at most one.
func (p *Pool) Allocate(owner string) (netip.Prefix, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.addrs[owner]; ok {
		return netip.Prefix{}, fmt.Errorf("allocate in %v: %s has %v already; release it first", p.subnet, owner, a)
	}
	if err := p.full(); err != nil {
		return netip.Prefix{}, fmt.Errorf("allocate in %w", err)
	}
	a := p.after(p.prev)
	for p.owners[a] != "" {
		a = p.after(a)
	}
	p.give(a, owner)
	return netip.PrefixFrom(a, p.subnet.Bits()), nil
}

// Full returns nil while there is an address to allocate, or an error that names the pool and wraps ErrExhausted.
func (p *Pool) Full() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.full(); err != nil {
		return fmt.Errorf("pool %w", err)
	}
	return nil
}

func (p *Pool) full() error {
	if uint64(len(p.owners)) < p.size {
		return nil
	}
	advice := "subnet ('podSubnets')"
	if p.part != p.subnet {
		advice = "range ('ranges' of the network)"
	}
	return fmt.Errorf("%v: %w, all %d are used; delete pods, or give the node a larger %s", p.part, ErrExhausted, p.size, advice)
}

// Claim gives the owner this very address, as a record says that it had. Claims in the order in which the
// records were made let the next Allocate go on where the last one stopped.
func (p *Pool) Claim(a netip.Addr, owner string) error {
	if a.Less(p.first) || p.last.Less(a) || a.BitLen() != p.first.BitLen() || a.Zone() != "" {
		return fmt.Errorf("claim %v for %s: it is not one of pod subnet %v, whose pods have %v to %v", a, owner, p.subnet, p.first, p.last)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if holder := p.owners[a]; holder != "" && holder != owner {
		return fmt.Errorf("claim %v for %s: %s has it", a, owner, holder)
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
