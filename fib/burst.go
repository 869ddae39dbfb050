package fib

import "sync/atomic"

// Lookup4Batch writes the next hop of keys[i] into out[i]; out is at least as long as keys. It goes down level
// by level with those keys that have no answer yet: their loads overlap, and no branch depends on a key, so
// that none is mispredicted. Where the processor has AVX-512 it does so with 32 keys in vectors.
func (v View) Lookup4Batch(keys []uint32, out []NextHop) {
	t, out := v.v, out[:len(keys)]
	if n := len(keys) &^ (vectorKeys - 1); vectors && n > 0 {
		gather4(&t.root4[0], &t.words[0], uint64(t.shift4), &keys[0], &out[0], uint64(n))
		t.finish4(keys[:n], out)
		keys, out = keys[n:], out[n:]
	}
	t.batch4(keys, out)
}

// Lookup6Batch writes the next hop of keys[i] into out[i], like Lookup4Batch.
func (v View) Lookup6Batch(keys []Key6, out []NextHop) {
	t, out := v.v, out[:len(keys)]
	if n := len(keys) &^ (vectorKeys - 1); vectors && n > 0 {
		gather6(&t.root6[0], &t.words[0], uint64(t.shift6), &keys[0], &out[0], uint64(n))
		t.finish6(keys[:n], out)
		keys, out = keys[n:], out[n:]
	}
	t.batch6(keys, out)
}

const (
	vectorKeys = 32 // go side by side with vectors
	burstKeys  = 64 // and without
)

// search is a lookup that has come to a bitmap: the word for it, the address bits from there on at the top of
// x, and the number of the key.
type search struct {
	x    uint64
	w, i uint32
}

// batch4 is Lookup4Batch without vectors.
func (t *version) batch4(keys []uint32, out []NextHop) {
	for len(keys) > 0 {
		n := min(len(keys), burstKeys)
		t.burst4(keys[:n], out)
		t.finish4(keys[:n], out)
		keys, out = keys[n:], out[n:]
	}
}

func (t *version) batch6(keys []Key6, out []NextHop) {
	for len(keys) > 0 {
		n := min(len(keys), burstKeys)
		t.burst6(keys[:n], out)
		t.finish6(keys[:n], out)
		keys, out = keys[n:], out[n:]
	}
}

// burst4 writes into out what a lookup of each key comes to behind all bitmaps.
func (t *version) burst4(keys []uint32, out []NextHop) {
	var searches [burstKeys]search
	n, shift, left := uint(0), t.shift4&31, -t.shift4&63
	root := t.root4
	out = out[:len(keys)]
	for i, addr := range keys {
		w := atomic.LoadUint32(&root[addr>>shift])
		out[i] = NextHop(w)
		searches[n%burstKeys] = search{uint64(addr) << left, w, uint32(i)}
		n += isBitmap(w)
	}
	t.bitmaps(searches[:n], out)
}

func (t *version) burst6(keys []Key6, out []NextHop) {
	var searches [burstKeys]search
	n, shift, left := uint(0), t.shift6&63, -t.shift6&63
	root := t.root6
	out = out[:len(keys)]
	for i := range keys {
		w, x := atomic.LoadUint32(&root[keys[i].Hi>>shift]), keys[i].Hi<<left
		if w>>kindShift == kindTable {
			w, x = t.table(w, x), x<<tableBits
		}
		out[i] = NextHop(w)
		searches[n%burstKeys] = search{x, w, uint32(i)}
		n += isBitmap(w)
	}
	t.bitmaps(searches[:n], out)
}

// isBitmap is 1 for a pointer to a bitmap and 0 for other words, without a branch.
func isBitmap(w uint32) uint {
	if w-kindBitmap<<kindShift < pointer {
		return 1
	}
	return 0
}

// bitmaps goes on with each search until it comes to something else than a bitmap, and writes that into out.
func (t *version) bitmaps(left []search, out []NextHop) {
	for len(left) > 0 {
		n := uint(0)
		for _, s := range left {
			w := t.bitmap(s.w, s.x)
			out[s.i] = NextHop(w)
			left[n] = search{s.x << bitmapBits, w, s.i}
			n += isBitmap(w)
		}
		left = left[:n]
	}
}

// finish4 replaces those that came to a list.
func (t *version) finish4(keys []uint32, out []NextHop) {
	out = out[:len(keys)]
	for i, nh := range out {
		if nh >= pointer {
			out[i] = t.list4(uint32(nh), keys[i])
		}
	}
}

// finish6 replaces those that came to a list or a skip, which look at the key from its first bit.
func (t *version) finish6(keys []Key6, out []NextHop) {
	out = out[:len(keys)]
	for i, nh := range out {
		if nh >= pointer {
			out[i] = t.walk6(uint32(nh), 0, keys[i])
		}
	}
}
