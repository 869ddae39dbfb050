package fib

import "math/bits"

// A node is a block of words in an arena, named by the offset of its first word:
//
//	word 0        children: bit n set if there is a child for the four bits n (bits 0–15)
//	              depth: how many leading address bits lead here, a multiple of 4 (bits 16–23)
//	              number of key words: 1 for IPv4, 4 for IPv6 (bits 24–31)
//	word 1        prefixes: bit i set if the prefix of slot i has a route
//	words 2…      key: the address bits that lead here, left-aligned, zeros after them
//	then          the next hops of the prefixes, by rising slot
//	then          the offsets of the children, by rising four bits
//
// A node at depth d holds the prefixes of length d+1 to d+4 below its key; the root alone can hold the one of
// length 0. Chains are compressed: a node has a prefix or at least two children.
const (
	headWords = 2
	maxNode   = headWords + 4 + 31 + 16 // words

	// slackWords is the room that a packed arena has for changes, on top of a quarter of its size: one long
	// IPv6 path (8 nodes of 25 words) a few times over. 4 KiB, so that small tables stay small.
	slackWords = 1024

	poisonWord = 0xdeadbeef // in tests, what freed blocks are filled with
)

// poison makes put overwrite what it frees, so that a lookup in a freed node gives a wrong answer. Only tests
// set it, before the first table exists.
var poison bool

// node is the writer's decoded form of a block.
type node struct {
	family family
	depth  uint32     // bits
	key    Key6       // zero after depth bits
	hops   [32]uint32 // by slot; 0 is no route; slot 0 is unused
	kids   [16]uint32 // by four bits; 0 is no child
}

// arena is a pointer-free heap of blocks. Word 0 is not part of any block: as an offset 0 means no node, and
// as a next hop the word reads None.
type arena struct {
	words []uint32
	free  [maxNode + 1]uint32 // lists of free blocks by size, linked through their word 0
	live  int                 // words of the blocks that the latest version reaches, and word 0
}

// newArena returns an arena that takes the given number of words, and slack, without growing.
func newArena(words int) *arena {
	return &arena{words: make([]uint32, 1, words+words/4+slackWords), live: 1}
}

// sparse reports whether less than half of the arena beyond its slack is in use: it grew while readers held
// blocks back, is fragmented, or its routes were deleted.
func (a *arena) sparse() bool { return cap(a.words) > 2*(a.live+slackWords) }

// alloc returns a block with undefined contents.
func (a *arena) alloc(size int) uint32 {
	a.live += size
	if off := a.free[size]; off != 0 {
		a.free[size] = a.words[off]
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
// It grows by an eighth: less waste than append's quarter, for 8 copies per word instead of 4 over a lifetime.
func (a *arena) grow(size int) {
	words := make([]uint32, len(a.words), len(a.words)+len(a.words)/8+size)
	copy(words, a.words)
	a.words = words
}

// put makes a block that no reader can reach available again.
func (a *arena) put(off uint32) {
	size := a.size(off)
	if poison {
		for i := range size {
			a.words[int(off)+i] = poisonWord
		}
	}
	a.words[off] = a.free[size]
	a.free[size] = off
}

// size is the length of a block in words.
func (a *arena) size(off uint32) int {
	head, prefixes := a.words[off], a.words[off+1]
	return headWords + headKeyWords(head) + bits.OnesCount32(prefixes) + bits.OnesCount16(uint16(head))
}

// load decodes a block.
func load(w []uint32, off uint32) (n node) {
	head, prefixes := w[off], w[off+1]
	n.depth = headDepth(head)
	at := off + headWords
	if headKeyWords(head) == 1 {
		n.key.Hi = uint64(w[at]) << 32
		at++
	} else {
		n.family, n.key = ipv6, readKey6(w, off)
		at += 4
	}
	for m := prefixes; m != 0; m &= m - 1 {
		n.hops[bits.TrailingZeros32(m)] = w[at]
		at++
	}
	for m := uint16(head); m != 0; m &= m - 1 {
		n.kids[bits.TrailingZeros16(m)] = w[at]
		at++
	}
	return n
}

// store encodes a node into a new block.
func (a *arena) store(n *node) uint32 {
	var buf [maxNode]uint32
	b := append(buf[:0], uint32(n.family.keyWords())<<24|n.depth<<16, 0, uint32(n.key.Hi>>32))
	if n.family == ipv6 {
		b = append(b, uint32(n.key.Hi), uint32(n.key.Lo>>32), uint32(n.key.Lo))
	}
	for i, hop := range n.hops {
		if hop != 0 {
			b[1] |= 1 << i
			b = append(b, hop)
		}
	}
	for i, kid := range n.kids {
		if kid != 0 {
			b[0] |= 1 << i
			b = append(b, kid)
		}
	}
	off := a.alloc(len(b))
	copy(a.words[off:], b)
	return off
}

// copyTree copies the nodes reachable from off into dst, parents before children, and returns the copy's
// offset. The recursion is as deep as the trie: at most 33 calls.
func (a *arena) copyTree(dst *arena, off uint32) uint32 {
	if off == 0 {
		return 0
	}
	size := a.size(off)
	to := dst.alloc(size)
	copy(dst.words[to:], a.words[off:int(off)+size])
	kids := bits.OnesCount16(uint16(a.words[off]))
	for i := size - kids; i < size; i++ {
		kid := a.copyTree(dst, a.words[int(off)+i]) // may move dst.words
		dst.words[int(to)+i] = kid
	}
	return to
}

func headDepth(head uint32) uint32 { return head >> 16 & 0xff }

func headKeyWords(head uint32) int { return int(head >> 24) }

func readKey6(w []uint32, off uint32) Key6 {
	k := w[off+headWords : off+headWords+4]
	return Key6{Hi: uint64(k[0])<<32 | uint64(k[1]), Lo: uint64(k[2])<<32 | uint64(k[3])}
}
