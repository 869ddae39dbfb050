package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"testing"

	"tapyard/bench/seed"
)

// slowSum is the model: RFC 1071 section 4.1, word by word, folded.
func slowSum(b []byte, initial uint64) uint16 {
	sum := initial
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestSum(t *testing.T) {
	r := seed.Rand(t)
	buffer := randomBytes(r, 1<<17)
	check := func(b []byte, initial uint32) {
		t.Helper()
		if got, want := Fold(Sum(b, initial)), slowSum(b, uint64(initial)); got != want {
			t.Fatalf("%d bytes, initial %#x: %#04x, want %#04x", len(b), initial, got, want)
		}
	}
	for length := range 600 {
		for align := range 8 {
			check(buffer[align:align+length], r.Uint32())
		}
	}
	for range rounds(2000) {
		start, length := r.IntN(1<<16), r.IntN(1<<16)
		check(buffer[start:start+length], r.Uint32())
	}
	// All ones carry out of every addition; nothing but zeroes sums to 0.
	for _, fill := range []byte{0x00, 0xff} {
		filled := bytes.Repeat([]byte{fill}, 70000)
		for _, length := range []int{0, 1, 7, 8, 15, 63, 64, 65, 71, 72, 127, 128, 65535, 70000} {
			for _, initial := range []uint32{0, 1, 0xffff, 0x10000, 0xffffffff} {
				check(filled[:length], initial)
			}
		}
	}
}

// What the comment of Sum promises about parts: even ones chain, what stands behind
// an odd one is swapped.
func TestSumOfParts(t *testing.T) {
	r := seed.Rand(t)
	for range rounds(5000) {
		whole := randomBytes(r, r.IntN(300))
		cut := r.IntN(len(whole) + 1)
		a, b := whole[:cut], whole[cut:]
		got := Fold(Sum(b, Sum(a, 0)))
		if cut%2 == 1 {
			got = Fold(Sum(a, 0) + uint32(bits.ReverseBytes16(Fold(Sum(b, 0)))))
		}
		if want := slowSum(whole, 0); got != want {
			t.Fatalf("%d bytes cut at %d: %#04x, want %#04x", len(whole), cut, got, want)
		}
	}
}

// Messages in which one word makes the checksum anything, the corners 0x0000 and
// 0xffff among it.
func TestUpdate16(t *testing.T) {
	r := seed.Rand(t)
	corners := []uint16{0, 1, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xfeff, 0xff00, 0xfffe, 0xffff}
	word := func() uint16 {
		if r.IntN(2) == 0 {
			return corners[r.IntN(len(corners))]
		}
		return uint16(r.Uint32())
	}
	message := make([]byte, 6)
	for range rounds(1_000_000) {
		before, after := word(), word()
		binary.BigEndian.PutUint16(message, word())
		binary.BigEndian.PutUint16(message[2:], word()|1) // not all zero
		binary.BigEndian.PutUint16(message[4:], before)
		sum := ^slowSum(message, 0)
		binary.BigEndian.PutUint16(message[4:], after)
		if got, want := Update16(sum, before, after), ^slowSum(message, 0); got != want {
			t.Fatalf("Update16(%#04x, %#04x, %#04x) = %#04x, want %#04x", sum, before, after, got, want)
		}
	}
}

// segment is a whole L4 segment of a real frame and the sum of its pseudo header.
func segment(frame []byte) (l4 []byte, proto uint8, pseudo uint32) {
	var p Parsed
	Parse(frame, false, &p)
	l4 = bytes.Clone(frame[p.L4:p.End])
	if p.Kind == KindIPv4 && p.Proto == ProtoICMPv4 {
		return l4, p.Proto, 0
	}
	return l4, p.Proto, PseudoHeader(frame[p.L3:], p.Kind == KindIPv6, p.Proto, len(l4))
}

// The kernel computed these checksums: ours are the same, and no single wrong bit
// goes unnoticed.
func TestChecksumsOfRealFrames(t *testing.T) {
	views := map[uint8]struct {
		ok     func(l4 []byte, pseudo uint32) bool
		update func(l4 []byte, pseudo uint32)
	}{
		ProtoICMPv4: {
			func(b []byte, _ uint32) bool { return ICMPv4(b).ChecksumOK() },
			func(b []byte, _ uint32) { ICMPv4(b).UpdateChecksum() },
		},
		ProtoTCP: {
			func(b []byte, pseudo uint32) bool { return TCP(b).ChecksumOK(pseudo) },
			func(b []byte, pseudo uint32) { TCP(b).UpdateChecksum(pseudo) },
		},
		ProtoUDP: {
			func(b []byte, pseudo uint32) bool { return UDP(b).ChecksumOK(pseudo) },
			func(b []byte, pseudo uint32) { UDP(b).UpdateChecksum(pseudo) },
		},
		ProtoICMPv6: {
			func(b []byte, pseudo uint32) bool { return ICMPv6(b).ChecksumOK(pseudo) },
			func(b []byte, pseudo uint32) { ICMPv6(b).UpdateChecksum(pseudo) },
		},
	}
	for _, name := range []string{
		"icmpv4Echo", "icmpv4Unreachable", "udpv4", "tcpv4", "vxlanARP", "neighborSolicit", "neighborAdvert",
		"dadSolicit", "icmpv6Echo", "mldReport", "udpv6", "tcpv6",
	} {
		l4, proto, pseudo := segment(realFrames[name])
		view := views[proto]
		want := bytes.Clone(l4)
		if view.update(l4, pseudo); !bytes.Equal(l4, want) {
			t.Errorf("%s: update changed % x to % x", name, want, l4)
		}
		if !view.ok(l4, pseudo) {
			t.Errorf("%s: checksum is refused", name)
		}
		for bit := range len(l4) * 8 {
			l4[bit/8] ^= 1 << (bit % 8)
			if view.ok(l4, pseudo) {
				t.Errorf("%s: wrong bit %d goes unnoticed", name, bit)
			}
			l4[bit/8] ^= 1 << (bit % 8)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	for _, length := range []int{20, 64, 1460, 65535} {
		b.Run(fmt.Sprintf("%dB", length), func(b *testing.B) {
			data := bytes.Repeat([]byte{0x5a}, length)
			b.SetBytes(int64(length))
			var sum uint32
			for b.Loop() {
				sum = Sum(data, sum)
			}
		})
	}
}
