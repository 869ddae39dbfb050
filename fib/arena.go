package fib

import (
	"math/bits"
	"sync/atomic"
)

// What readers walk through consists of 32-bit words. A word is a leaf, the next hop itself, or a pointer to a
// block of the arena: the kind in the upper 4 bits, the offset of the block's first word in the others.
//
//	bitmap  0–1  bit n set if the value of position n differs from that of n-1 (64 bits, low word first)
//	        2…   the values, one for each run of equal positions: leaves or pointers
//	table   the values of 2^tableBits positions
//	list    0    the leaf for addresses that no route of the list holds; how many routes (bits 24–31)
//	        1…   the routes, longest first: address (1 word of IPv4; the upper 2 or all 4 of IPv6), then the
//	             leaf and the length (bits 24–31). In lists behind a skip to the lower half, all is as if
//	             that half were the upper one
//	skip    0    the leaf for addresses outside of the prefix; the prefix's length (bits 24–31)
//	        1–4  the prefix
//	        5    the value for addresses inside
//
// A position is what the next bits of an address select; values already have the routes of shorter prefixes
// in them (leaf pushing), so the first leaf on the way is the answer. Blocks begin at even offsets, so that a
// bitmap never straddles two cache lines.
const (
	kindShift = 28
	pointer   = 1 << kindShift // words from here on are pointers
	hopMask   = 1<<24 - 1
	offMask   = pointer - 1

	kindLeaf   = 0
	kindBitmap = 1
	kindTable  = 2
	kindList4  = 3
	kindListHi = 4 // of IPv6, no route longer than 64 bits
	kindList6  = 5
	kindListLo = 6 // of IPv6, behind a skip to the lower half
	kindSkip   = 7

	bitmapBits = 6
	positions  = 1 << bitmapBits // of a bitmap
	tableBits  = 10

	arenaHead  = 2 // words before the first block
	bitmapHead = 2
	skipWords  = 6
	skipValue  = 5 // where a skip has the value for addresses inside

	// maxWords is the size of the largest block but a table.
	maxWords = bitmapHead + positions

	poisonWord = 0xdeadbeef // in tests, what freed blocks are filled with
)

// poison makes put overwrite what it frees, so that a lookup in a freed block gives a wrong answer. Only tests
// set it, before the first table exists.
var poison bool

func kindOf(w uint32) uint32 { return w >> kindShift }

// arena is a pointer-free heap of blocks. Words 0 and 1 belong to no block, so that 0 ends free lists.
type arena struct {
	words     []uint32
	free      [maxWords/2 + 1]uint32 // lists of free blocks by half their size, linked through their word 0
	freeTable uint32                 // the same of tables
	live      int                    // words of the blocks that the latest version reaches, and words 0 and 1
}

// newArena returns an arena that takes the given number of words without growing.
func newArena(words int) *arena {
	return &arena{words: make([]uint32, arenaHead, arenaHead+words), live: arenaHead}
}

func (a *arena) list(size int) *uint32 {
	if size > maxWords {
		return &a.freeTable
	}
	return &a.free[size/2]
}

// alloc returns the offset of a block of at least the given size, with undefined contents.
func (a *arena) alloc(size int) uint32 {
	size += size & 1
	a.live += size
	free := a.list(size)
	if off := *free; off != 0 {
		*free = a.words[off]
		return off
	}
	off := len(a.words)
	if off+size > cap(a.words) {
		a.grow(size)
	}
	a.words = a.words[:off+size]
	return uint32(off)
}

// grow moves the words to a new array with room for at least size more. Published versions keep the old one.
// It grows by a 16th: less waste than append's quarter, for 16 copies per word instead of 4 over a lifetime.
func (a *arena) grow(size int) { a.resize(len(a.words) + len(a.words)/16 + size) }

func (a *arena) resize(capacity int) {
	words := make([]uint32, len(a.words), capacity)
	copy(words, a.words)
	a.words = words
}

// put makes a block that no reader can reach available again.
func (a *arena) put(w uint32) {
	off, size := w&offMask, a.size(w)
	if poison {
		for i := range size {
			a.words[int(off)+i] = poisonWord
		}
	}
	free := a.list(size)
	a.words[off] = *free
	*free = off
}

// used is the length in words of the block that w points to.
func (a *arena) used(w uint32) int {
	switch kind := kindOf(w); kind {
	case kindBitmap:
		return bitmapHead + a.runs(w)
	case kindTable:
		return 1 << tableBits
	case kindSkip:
		return skipWords
	default:
		return 1 + listWidth(kind)*int(a.words[w&offMask]>>24)
	}
}

// size is used with the word behind it that keeps the next block's offset even.
func (a *arena) size(w uint32) int {
	n := a.used(w)
	return n + n&1
}

// children are the values of the block that w points to, at its end.
func (a *arena) children(w uint32) []uint32 {
	block := a.words[w&offMask:][:a.used(w)]
	switch kindOf(w) {
	case kindBitmap:
		return block[bitmapHead:]
	case kindTable:
		return block
	case kindSkip:
		return block[skipValue:]
	}
	return nil // a list has leaves only
}

// set changes a value that readers may be looking at.
func (a *arena) set(off, value uint32) { atomic.StoreUint32(&a.words[off], value) }

// valueOf returns where the value of position i of the bitmap w is.
func (a *arena) valueOf(w, i uint32) uint32 {
	off := w & offMask
	return off + bitmapHead + uint32(bits.OnesCount64(a.bitmap(off)<<(63-i)))
}

func (a *arena) bitmap(off uint32) uint64 {
	return uint64(a.words[off]) | uint64(a.words[off+1])<<32
}

// runs is the number of values of the bitmap w.
func (a *arena) runs(w uint32) int { return bits.OnesCount64(a.bitmap(w&offMask)) + 1 }

// values writes the values of all positions of the bitmap w.
func (a *arena) values(w uint32, into *[positions]uint32) {
	off := w & offMask
	bitmap, at := a.bitmap(off), off+bitmapHead
	for i := range into {
		at += uint32(bitmap>>i) & 1
		into[i] = a.words[at]
	}
}

// storeBitmap returns the word for these values: a leaf if they are all the same one.
func (a *arena) storeBitmap(values *[positions]uint32) uint32 {
	var buf [positions]uint32
	runs, bitmap := append(buf[:0], values[0]), uint64(0)
	for i := 1; i < positions; i++ {
		if values[i] != values[i-1] {
			bitmap |= 1 << i
			runs = append(runs, values[i])
		}
	}
	if len(runs) == 1 && runs[0] < pointer {
		return runs[0]
	}
	off := a.alloc(bitmapHead + len(runs))
	a.words[off], a.words[off+1] = uint32(bitmap), uint32(bitmap>>32)
	copy(a.words[off+bitmapHead:], runs)
	return kindBitmap<<kindShift | off
}

func (a *arena) storeTable(values []uint32) uint32 {
	off := a.alloc(len(values))
	copy(a.words[off:], values)
	return kindTable<<kindShift | off
}

func (a *arena) storeSkip(miss uint32, to place, value uint32) uint32 {
	off := a.alloc(skipWords)
	w := a.words[off : off+skipWords]
	w[0] = to.depth<<24 | miss
	w[1], w[2], w[3], w[4] = uint32(to.key.Hi>>32), uint32(to.key.Hi), uint32(to.key.Lo>>32), uint32(to.key.Lo)
	w[skipValue] = value
	return kindSkip<<kindShift | off
}

// skipPlace is where the skip w leads.
func (a *arena) skipPlace(w uint32) place {
	s := a.words[w&offMask:][:skipWords]
	return place{family: ipv6, key: readKey6(s[1:]), depth: s[0] >> 24, low: s[0]>>24 >= 64}
}

// storeList stores routes, the longest first. cover is the leaf for all other addresses.
func (a *arena) storeList(kind, cover uint32, routes []route) uint32 {
	width := listWidth(kind)
	off := a.alloc(1 + len(routes)*width)
	w := a.words[off:]
	w[0] = uint32(len(routes))<<24 | cover
	for i, at := range routes {
		if kind == kindListLo {
			at.key, at.length = Key6{Hi: at.key.Lo}, at.length-64
		}
		encode(w[1+i*width:][:width], at)
	}
	return kind<<kindShift | off
}

// listWidth is the number of words that a route takes in a kind of list.
func listWidth(kind uint32) int {
	switch kind {
	case kindList4:
		return 2
	case kindListHi, kindListLo:
		return 3
	}
	return 5
}

// miss is the leaf of the addresses that a list or skip has nothing else for.
func (a *arena) miss(w uint32) uint32 { return a.words[w&offMask] & hopMask }
