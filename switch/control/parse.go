package control

import (
	"fmt"
	"net/netip"
	"strings"
)

// ParseAddr reads an IP address as people write it into files and flags. The error says what it is instead.
func ParseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err == nil:
		return a, nil
	case strings.Contains(s, "/"):
		return a, fmt.Errorf("%q is not an IP address; leave out the length", s)
	}
	return a, fmt.Errorf("%q is not an IP address; names are not resolved, write the address", s)
}

// ParsePrefix reads an address range such as 10.244.1.0/24. The error says what it is instead.
func ParsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil {
		return p, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		bits := 64 // of a LAN, RFC 4291 section 2.5.4
		if a.Is4() {
			bits = 24
		}
		like, _ := a.Prefix(bits)
		return p, fmt.Errorf("%q has no length; write the range, for example %s", s, like)
	}
	return p, fmt.Errorf("%q is not an address range; write address and length, for example 10.244.1.0/24", s)
}
