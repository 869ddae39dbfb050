//go:build !race

package wire

import "golang.org/x/sys/cpu"

var hasVectors = cpu.X86.HasAVX2

// sumBlocks adds the little-endian words of 32 bits in the n bytes at p; n is a multiple of sumBlock, not 0, and below
// 2^34.
//
//go:noescape
func sumBlocks(p *byte, n int) uint64
