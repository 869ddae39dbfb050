package port

import (
	"testing"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
)

// The kernel doesn't tell of refused writes in their order: of those that fail before they reach the device it does first,
// and Linux 6.0 to 6.8 tell of the others the last one first. Each frame is counted once nevertheless, as what became of it.
func TestRefusedOutOfOrder(t *testing.T) {
	rings := openRings(t, 1)
	p := newTAPPod(t, 2, rings)
	fd := big(t, p)[0]
	const (
		n      = 20
		length = 96 // with its headroom and rounded up, a frame has 112 bytes of the arena
		early  = 11 // the memory that the kernel knows ends within this frame
		known  = early*112 + frame.Headroom + length/2
	)
	late := map[uint32]bool{2: true, 3: true, 15: true} // refused by the device
	check(t, rings.of(0).RegisterMemory(p.pool.Memory()[:known]))
	var b frame.Burst
	for i := range uint32(n) {
		f := p.commit(numbered(i, length))
		if late[i] {
			f.NeedsCsum, f.CsumStart, f.CsumOffset = true, 60_000, 6
		}
		b.Append(f)
	}
	p.tx.Send(&b)
	b.Release()
	for i := range uint32(n) {
		if i != early && !late[i] {
			expectNumbered(t, fd, i, length, 0)
		}
	}
	if sent, refused, bytes := p.st.Tx.Frames.Load(), p.st.Drops[drop.TxError].Frames.Load(), p.st.TxBytes.Load(); sent != n-4 || refused != 4 || bytes != length*(n-4) {
		t.Errorf("%d frames of %d bytes counted as sent, %d as tx_error; want %d of %d, and 4", sent, bytes, refused, n-4, length*(n-4))
	}
}
