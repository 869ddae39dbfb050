//go:build !race

package fib

import "golang.org/x/sys/cpu"

// vectors reports whether the processor has what gather4 and gather6 use.
var vectors = cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ &&
	cpu.X86.HasAVX512VPOPCNTDQ

// gather4 writes into out what a lookup of each of n keys comes to behind all bitmaps: a leaf, or a pointer to
// something else. n is a multiple of vectorKeys and not 0; shift is the root's. Its loads are atomic, as those of
// aligned words are on this processor.
//
//go:noescape
func gather4(root, base *uint32, shift uint64, keys *uint32, out *NextHop, n uint64)

// gather6 does the same, also behind tables.
//
//go:noescape
func gather6(root, base *uint32, shift uint64, keys *Key6, out *NextHop, n uint64)
