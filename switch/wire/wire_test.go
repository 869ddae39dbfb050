package wire

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// unhex reads hex digits; a line's // begins a comment.
func unhex(s string) []byte {
	var digits strings.Builder
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "//")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		panic(err)
	}
	return b
}

// newRand returns a generator whose seed is printed; TEST_SEED replays a run.
func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("TEST_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("TEST_SEED: %v", err)
		}
		seed = v
	}
	t.Logf("TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// rounds is n, or a twentieth of it under -short.
func rounds(n int) int {
	if testing.Short() {
		return n / 20
	}
	return n
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// dirty returns n bytes that no header leaves standing by accident.
func dirty(n int) []byte { return bytes.Repeat([]byte{0xa5}, n) }

func mustMAC(s string) MAC {
	m, err := ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// Offsets of L4 in frames without options and extension headers.
const (
	l4v4 = EthernetLen + IPv4MinLen
	l4v6 = EthernetLen + IPv6Len
)

// checkEncoded fails unless an encoder that was given len(want) dirty bytes
// produced want.
func checkEncoded(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n% x, want\n% x", got, want)
	}
}

// checkShort fails unless isValid refuses every shorter cut of header.
func checkShort(t *testing.T, header []byte, isValid func([]byte) bool) {
	t.Helper()
	if !isValid(header) {
		t.Errorf("% x is not valid", header)
	}
	for n := range header {
		if isValid(header[:n:n]) {
			t.Errorf("valid with %d of %d bytes", n, len(header))
		}
	}
}

// addSeeds seeds f with what stands at offset in each of the named frames.
func addSeeds(f *testing.F, offset int, names ...string) {
	for _, name := range names {
		f.Add(realFrames[name][offset:])
	}
}
