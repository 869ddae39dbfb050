package encap

import (
	"encoding/binary"

	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// A test is a few messages of known bytes, marked by their flags, that cross the way as super-frames will: what arrives
// must be what was sent, its lengths included. Each holds where a frame would be: test 4, number 4, its own length 4, then
// bytes that follow from these.
const testHeaderLen = 12

// testMeta goes with a test's messages; no field of it is 0 or as another.
var testMeta = frame.Meta{GSOType: wire.GSOTCPv6 | wire.GSOECN, NeedsCsum: true, HdrLen: 0x0102, GSOSize: 0x0304, CsumStart: 0x0506, CsumOffset: 0x0708}

// testLens are the lengths of a test's messages without the offload header, for datagrams of size bytes: a short one, one
// slice that is full, one with a single byte in the second slice, a few slices, and the longest frame.
func testLens(size int) [testMessages]int {
	full := size - sliceLen
	return [...]int{testHeaderLen + 6, full - offloadLen, full - offloadLen + 1, min(5*full+full/2, frame.MaxLen-1), frame.MaxLen}
}

const (
	testMessages = 5
	testPassed   = 1<<testMessages - 1 // a bit for each
)

// fillTest makes b the message number of a test.
func fillTest(b []byte, test, number uint32) {
	binary.BigEndian.PutUint32(b, test)
	binary.BigEndian.PutUint32(b[4:], number)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)))
	var next [8]byte
	x := testSeed(b)
	for rest := b[testHeaderLen:]; len(rest) > 0; {
		x = nextTest(x, &next)
		rest = rest[copy(rest, next[:]):]
	}
}

// isTest says whether b is as fillTest made it.
func isTest(b []byte) bool {
	if len(b) < testHeaderLen || int(binary.BigEndian.Uint32(b[8:])) != len(b) {
		return false
	}
	var next [8]byte
	x := testSeed(b)
	for rest := b[testHeaderLen:]; len(rest) > 0; {
		x = nextTest(x, &next)
		n := min(len(rest), len(next))
		if string(rest[:n]) != string(next[:n]) {
			return false
		}
		rest = rest[n:]
	}
	return true
}

func testSeed(b []byte) uint64 { return binary.BigEndian.Uint64(b) ^ uint64(len(b)) }

// nextTest is a step of Knuth's MMIX generator.
func nextTest(x uint64, b *[8]byte) uint64 {
	x = x*6364136223846793005 + 1442695040888963407
	binary.LittleEndian.PutUint64(b[:], x)
	return x
}

// verify notes for the peer's next hello that a message of its test has arrived as it was sent.
func (l *link) verify(offload, b []byte) {
	var m frame.Meta
	getOffload(offload, &m)
	if m != testMeta || !isTest(b) {
		return
	}
	test, number := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	passed := uint32(1) << number // 0 from 32 on
	if was := l.tested.Load(); uint32(was>>32) == test {
		passed |= uint32(was)
	}
	l.tested.Store(uint64(test)<<32 | uint64(passed))
}
