package fib

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Key6 is an IPv6 address as two numbers in host order: Hi holds bytes 0 to 7 of the address (big-endian), Lo
// bytes 8 to 15. Inside the package IPv4 addresses are keys as well, in the upper half of Hi.
type Key6 struct{ Hi, Lo uint64 }

// family is an address family as an index.
type family int

const (
	ipv4 family = iota
	ipv6
)

// keyWords is the length of a key in words.
func (f family) keyWords() int {
	if f == ipv4 {
		return 1
	}
	return 4
}

// familyOf returns the family of an address. IPv4-mapped counts as IPv6.
func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// split turns an address into its family and its bits, left-aligned. IPv4-mapped counts as IPv6.
func split(a netip.Addr) (family, Key6) {
	if a.Is4() {
		b := a.As4()
		return ipv4, Key6{Hi: uint64(binary.BigEndian.Uint32(b[:])) << 32}
	}
	b := a.As16()
	return ipv6, Key6{Hi: binary.BigEndian.Uint64(b[:8]), Lo: binary.BigEndian.Uint64(b[8:])}
}

// join is the reverse of split, for a prefix of the given length.
func join(f family, k Key6, length int) netip.Prefix {
	if f == ipv4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(k.Hi>>32))
		return netip.PrefixFrom(netip.AddrFrom4(b), length)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.Hi)
	binary.BigEndian.PutUint64(b[8:], k.Lo)
	return netip.PrefixFrom(netip.AddrFrom16(b), length)
}

// mask clears all but the first depth bits of k (depth below 128).
func mask(k Key6, depth uint32) Key6 {
	if depth <= 64 {
		return Key6{Hi: k.Hi &^ (^uint64(0) >> depth)}
	}
	return Key6{Hi: k.Hi, Lo: k.Lo &^ (^uint64(0) >> (depth - 64))}
}

// samePrefix reports whether a and b agree in their first depth bits (depth below 128).
func samePrefix(a, b Key6, depth uint32) bool {
	if depth <= 64 {
		return (a.Hi^b.Hi)>>(64-depth) == 0
	}
	return a.Hi == b.Hi && (a.Lo^b.Lo)>>(128-depth) == 0
}

// commonBits is the number of leading bits in which a and b agree.
func commonBits(a, b Key6) uint32 {
	if x := a.Hi ^ b.Hi; x != 0 {
		return uint32(bits.LeadingZeros64(x))
	}
	return 64 + uint32(bits.LeadingZeros64(a.Lo^b.Lo))
}

// readKey6 reads the first four words of w as an address.
func readKey6(w []uint32) Key6 {
	w = w[:4]
	return Key6{Hi: uint64(w[0])<<32 | uint64(w[1]), Lo: uint64(w[2])<<32 | uint64(w[3])}
}
