package attach

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
)

// bbolt trusts its file: a wrong number in it is a wild pointer, and a panic in a goroutine that nobody can
// recover. So the file's form is checked before bbolt sees it. Read bbolt's internal/common first: page.go,
// meta.go, bucket.go, inode.go. Numbers are in the machine's byte order. What the records hold is checked by
// their own checksums.

const (
	pageHeader    = 16 // id 8, flags 2, count 2, overflow 4
	metaSize      = 64
	bucketHeader  = 16 // root page 8, sequence 8
	elementHeader = 16 // of a branch: position 4, key size 4, page 8; of a leaf: flags 4, position 4, two sizes

	branchPage, leafPage, metaPage = 1, 2, 4

	boltMagic, boltVersion = 0xed0cdaed, 2
	noFreelist             = ^uint64(0) // the free pages are not listed in the file, but found at each open
)

// A page has at least 1 KiB, bbolt's smallest, and at most what count and position can say with room to spare.
const minPageSize, maxPageSize = 1 << 10, 1 << 16

var native = binary.NativeEndian

// pages is a database file in memory.
type pages struct {
	b    []byte
	size uint64 // of a page, in bytes
	high uint64 // the first page that was never used
	seen map[uint64]bool
}

// checkPages says what in a database file, given whole, bbolt would stumble over: wrong sizes, positions and
// references, pages that two others refer to, keys out of order. It may be given any bytes.
func checkPages(b []byte) error {
	p := &pages{b: b, seen: map[uint64]bool{}}
	root, err := p.readMetas()
	if err != nil {
		return err
	}
	return p.walk(root, span{}, func(e element) error {
		if !e.bucket {
			return fmt.Errorf("key %.40q is outside of all buckets", e.key)
		}
		return p.walkBucket(e)
	})
}

// readMetas reads the two pages that transactions write in turn. Both must be right: with one of them alone the
// file is as it was one transaction ago, and an acknowledged change would be missing.
func (p *pages) readMetas() (root uint64, err error) {
	if len(p.b) < pageHeader+metaSize {
		return 0, fmt.Errorf("it has %d bytes, less than its first page", len(p.b))
	}
	p.size = uint64(native.Uint32(p.b[pageHeader+8:]))
	if p.size < minPageSize || p.size > maxPageSize || p.size&(p.size-1) != 0 {
		return 0, fmt.Errorf("page 0 says that pages have %d bytes", p.size)
	}
	if uint64(len(p.b)) < 2*p.size {
		return 0, fmt.Errorf("it has %d bytes, less than its first two pages", len(p.b))
	}
	var txid [2]uint64
	for i := range txid {
		page := p.b[uint64(i)*p.size:]
		meta := page[pageHeader : pageHeader+metaSize]
		if native.Uint64(page) != uint64(i) || native.Uint16(page[8:]) != metaPage || native.Uint32(meta) != boltMagic || native.Uint32(meta[4:]) != boltVersion ||
			native.Uint32(meta[8:]) != uint32(p.size) || native.Uint64(meta[metaSize-8:]) != metaSum(meta) {
			return 0, fmt.Errorf("page %d, one of the two that say where the rest is, does not match its checksum", i)
		}
		txid[i] = native.Uint64(meta[48:])
	}
	last := txid[1] & 1 // the even transactions are page 0's
	if txid[0]&1 != 0 || txid[1]&1 != 1 || txid[0]-txid[1] != 1 && txid[1]-txid[0] != 1 {
		return 0, fmt.Errorf("pages 0 and 1 are of transactions %d and %d, which don't follow one another", txid[0], txid[1])
	}
	if txid[0] > txid[1] {
		last = 0
	}
	meta := p.b[last*p.size+pageHeader:]
	p.high = native.Uint64(meta[40:])
	if have := uint64(len(p.b)) / p.size; p.high > have {
		return 0, fmt.Errorf("it has %d pages of %d bytes where %d are in use: it was cut off", have, p.size, p.high)
	}
	if native.Uint64(meta[32:]) != noFreelist {
		return 0, errors.New("it lists its free pages, which this agent's databases don't")
	}
	return native.Uint64(meta[16:]), nil
}

// metaSum is what the last 8 bytes of a meta should be.
func metaSum(meta []byte) uint64 {
	sum := fnv.New64a()
	sum.Write(meta[:metaSize-8])
	return sum.Sum64()
}

// span holds the keys that may stand below a page: first is the first of them, max is greater than all. Each is nil without
// a bound.
type span struct{ first, max []byte }

// element is an entry of a page.
type element struct {
	key, value []byte
	bucket     bool
	child      uint64 // of a branch
}

// walk visits a page and all below it, and calls leaf for each entry of a leaf.
func (p *pages) walk(id uint64, in span, leaf func(element) error) error {
	page, err := p.take(id)
	if err == nil {
		err = p.walkPage(page, in, leaf)
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// take returns a page with its overflow, once.
func (p *pages) take(id uint64) ([]byte, error) {
	if id < 2 || id >= p.high {
		return nil, fmt.Errorf("it is not one of pages 2 to %d", p.high)
	}
	page := p.b[id*p.size : p.high*p.size]
	if native.Uint64(page) != id {
		return nil, fmt.Errorf("it says that it is page %d", native.Uint64(page))
	}
	n := uint64(native.Uint32(page[12:])) + 1
	if n > p.high-id {
		return nil, fmt.Errorf("it says that it goes on for %d pages, beyond the last one in use", n)
	}
	for i := range n {
		if p.seen[id+i] {
			return nil, fmt.Errorf("page %d belongs to another one as well", id+i)
		}
		p.seen[id+i] = true
	}
	return page[:n*p.size], nil
}

func (p *pages) walkPage(page []byte, in span, leaf func(element) error) error {
	elements, err := elementsOf(page, in)
	if err != nil {
		return err
	}
	isBranch := native.Uint16(page[8:]) == branchPage
	if len(elements) == 0 && (isBranch || in.first != nil) {
		return errors.New("it is empty")
	}
	for i, e := range elements {
		if !isBranch {
			if err := leaf(e); err != nil {
				return err
			}
			continue
		}
		below := span{e.key, in.max}
		if i+1 < len(elements) {
			below.max = elements[i+1].key
		}
		if err := p.walk(e.child, below, leaf); err != nil {
			return err
		}
	}
	return nil
}

// walkBucket visits a bucket of records, which stands in the entry itself while it is small.
func (p *pages) walkBucket(b element) error {
	plain := func(e element) error {
		if e.bucket {
			return fmt.Errorf("bucket %.40q has bucket %.40q in it", b.key, e.key)
		}
		return nil
	}
	if len(b.value) < bucketHeader {
		return fmt.Errorf("bucket %.40q has %d bytes", b.key, len(b.value))
	}
	if root := native.Uint64(b.value); root != 0 {
		return p.walk(root, span{}, plain)
	}
	page := b.value[bucketHeader:]
	if len(page) < pageHeader || native.Uint64(page) != 0 || native.Uint16(page[8:]) != leafPage || native.Uint32(page[12:]) != 0 {
		return fmt.Errorf("bucket %.40q has no entries of its own and no page", b.key)
	}
	if err := p.walkPage(page, span{}, plain); err != nil {
		return fmt.Errorf("bucket %.40q: %w", b.key, err)
	}
	return nil
}

// elementsOf returns the entries of a page, which has a header. Positions count from the entry that has them.
func elementsOf(page []byte, in span) ([]element, error) {
	kind, count := native.Uint16(page[8:]), int(native.Uint16(page[10:]))
	if kind != branchPage && kind != leafPage {
		return nil, fmt.Errorf("it is of the unknown kind %#x", kind)
	}
	if pageHeader+count*elementHeader > len(page) {
		return nil, fmt.Errorf("it says that it has %d entries, more than fit", count)
	}
	elements := make([]element, count)
	for i := range elements {
		head := page[pageHeader+i*elementHeader:]
		e, pos, keySize, valueSize := &elements[i], uint64(native.Uint32(head[4:])), uint64(native.Uint32(head[8:])), uint64(native.Uint32(head[12:]))
		if kind == branchPage {
			pos, keySize, valueSize = uint64(native.Uint32(head)), uint64(native.Uint32(head[4:])), 0
			e.child = native.Uint64(head[8:])
		} else if flags := native.Uint32(head); flags > 1 {
			return nil, fmt.Errorf("entry %d has the unknown flags %#x", i, flags)
		} else {
			e.bucket = flags == 1
		}
		if pos < elementHeader*uint64(count-i) || pos+keySize+valueSize > uint64(len(head)) {
			return nil, fmt.Errorf("entry %d lies outside of it", i)
		}
		e.key, e.value = head[pos:pos+keySize], head[pos+keySize:pos+keySize+valueSize]
		if keySize == 0 || i == 0 && in.first != nil && !bytes.Equal(e.key, in.first) || in.max != nil && bytes.Compare(e.key, in.max) >= 0 {
			return nil, fmt.Errorf("entry %d has the key %.40q, which does not belong there", i, e.key)
		}
		if i > 0 && bytes.Compare(e.key, elements[i-1].key) <= 0 {
			return nil, fmt.Errorf("entry %d has the key %.40q, which should come before", i, e.key)
		}
	}
	return elements, nil
}
