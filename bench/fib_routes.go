package bench

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"

	"tapyard/fib"
)

// fibRoutes is the real table, as seen from the repository's first folder.
const fibRoutes = "../shared/data/bgp-prefixes.txt.gz"

// Of the table that is generated where the real one is absent: as many prefixes as that has.
const generated4, generated6 = 901_899, 160_147

// loadPrefixes reads the table, sorted. With no name that is the real one, or where it is absent a generated
// one, and then note says so.
func loadPrefixes(name string) (prefixes []netip.Prefix, note string, err error) {
	if name != "" {
		prefixes, err = readPrefixes(name)
		return prefixes, "", err
	}
	prefixes, err = readPrefixes(fibRoutes)
	if errors.Is(err, fs.ErrNotExist) {
		note = fibRoutes + " is absent: the table is generated, of the Internet's shape (--routes names another)"
		return generatePrefixes(generated4, generated6), note, nil
	}
	return prefixes, "", err
}

// readPrefixes reads a file of one prefix a line, plain or gzip, in any order, and sorts it.
func readPrefixes(name string) ([]netip.Prefix, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read routes: %w", err)
	}
	defer file.Close()
	prefixes, err := parsePrefixes(file)
	if err != nil {
		return nil, fmt.Errorf("routes %s: %w", name, err)
	}
	return prefixes, nil
}

func parsePrefixes(r io.Reader) (prefixes []netip.Prefix, err error) {
	in := bufio.NewReader(r)
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, err
		}
		in = bufio.NewReader(z)
	}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		p, err := parsePrefix(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		prefixes = append(prefixes, p)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("after line %d: %w", len(prefixes), err)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes, checkPrefixes(prefixes)
}

func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not a prefix like 192.0.2.0/24 or 2001:db8::/32", text)
	case p != p.Masked():
		return p, fmt.Errorf("%q has bits set beyond its length: write %v", text, p.Masked())
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%q is IPv4-mapped: write it as IPv4", text)
	}
	return p, nil
}

// checkPrefixes looks at a sorted table as a whole.
func checkPrefixes(prefixes []netip.Prefix) error {
	if len(prefixes) == 0 {
		return errors.New("there is no prefix in it; one is needed a line")
	}
	for i, p := range prefixes[1:] {
		if p == prefixes[i] {
			return fmt.Errorf("%v is listed twice: each prefix is one route (sort -u)", p)
		}
	}
	return nil
}

// generatePrefixes makes a sorted table of the Internet's shape, always the same one: IPv4 of lengths /16 to
// /24, half of them /24, with as many /22 and /23 as the rest, and IPv6 of lengths /32 to /48.
func generatePrefixes(n4, n6 int) []netip.Prefix {
	r := rand.New(rand.NewPCG(1, 2))
	set := make(map[netip.Prefix]bool, n4+n6)
	for len(set) < n4 {
		a := [4]byte{byte(1 + r.IntN(223)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}
		set[netip.PrefixFrom(netip.AddrFrom4(a), 24-r.IntN(2)*r.IntN(3)*r.IntN(5)).Masked()] = true
	}
	for len(set) < n4+n6 {
		a := [16]byte{0x20 | byte(r.IntN(16)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}
		a[4], a[5] = byte(r.Uint32()&r.Uint32()), byte(r.Uint32()&r.Uint32())
		set[netip.PrefixFrom(netip.AddrFrom16(a), 48-r.IntN(2)*r.IntN(5)*4).Masked()] = true
	}
	return slices.SortedFunc(maps.Keys(set), netip.Prefix.Compare)
}

// hopAssignment gives each route of a table its next hop.
type hopAssignment struct {
	name string
	hop  func(i int, p netip.Prefix) fib.NextHop // of the route at i
}

// hardestHops is the assignment with which no two routes can be merged.
const hardestHops = "unique"

// hopAssignments are a router's few neighbours, and the worst case for everything that merges routes.
var hopAssignments = []hopAssignment{
	{"hash", func(_ int, p netip.Prefix) fib.NextHop { return fib.NextHop(1 + hashPrefix(p)%256) }},
	{hardestHops, func(i int, _ netip.Prefix) fib.NextHop { return fib.NextHop(1 + i) }},
}

func hashPrefix(p netip.Prefix) uint32 {
	h := fnv.New32a()
	h.Write(p.Addr().AsSlice())
	h.Write([]byte{byte(p.Bits())})
	return h.Sum32()
}

func (a hopAssignment) routes(prefixes []netip.Prefix) []fib.Route {
	routes := make([]fib.Route, len(prefixes))
	for i, p := range prefixes {
		routes[i] = fib.Route{Prefix: p, NextHop: a.hop(i, p)}
	}
	return routes
}

// ipFamily is an address family as rows name it.
type ipFamily string

const (
	family4 ipFamily = "ipv4"
	family6 ipFamily = "ipv6"
)

// of returns the family's part of a table.
func (f ipFamily) of(prefixes []netip.Prefix) (own []netip.Prefix) {
	for _, p := range prefixes {
		if p.Addr().Is4() == (f == family4) {
			own = append(own, p)
		}
	}
	return own
}

// subset draws n of the prefixes, sorted.
func subset(r *rand.Rand, prefixes []netip.Prefix, n int) []netip.Prefix {
	drawn := make([]netip.Prefix, n)
	for i, at := range r.Perm(len(prefixes))[:n] {
		drawn[i] = prefixes[at]
	}
	slices.SortFunc(drawn, netip.Prefix.Compare)
	return drawn
}
