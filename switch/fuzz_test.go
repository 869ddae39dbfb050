package vswitch

import (
	"testing"

	"tapyard/switch/frame"
	"tapyard/switch/port/porttest"
)

// FuzzPipeline throws bytes and offload metadata at each kind of port. Whatever they are, every frame is
// accounted for and no buffer is lost.
func FuzzPipeline(f *testing.F) {
	s := superUDP(f, 64)
	f.Add(uint8(0), udp(f, macA, macB, a4, b4, 64, "x"), uint8(0), false, uint16(0), uint16(0), uint16(0))
	f.Add(uint8(0), udp(f, macA, routerMAC, a6, remote6, 1, "x"), uint8(0), false, uint16(0), uint16(0), uint16(0))
	f.Add(uint8(1), udp(f, hostMAC, routerMAC, gw4, absent4, 64, "x"), uint8(0), false, uint16(0), uint16(0), uint16(0))
	f.Add(uint8(2), udp(f, peerMAC, routerMAC, remote4, b4, 64, "x"), uint8(0), false, uint16(0), uint16(0), uint16(0))
	f.Add(uint8(0), s.Bytes, s.Meta.GSOType, true, s.Meta.GSOSize, s.Meta.CsumStart, s.Meta.CsumOffset)
	// The ECN flag without a GSO type reached ports that take no offload.
	f.Add(uint8(0), udp(f, macA, macB, a4, b4, 64, "x"), uint8(0x80), false, uint16(37), uint16(0), uint16(0))
	// A checksum that starts behind the headers of a super-frame: the segmenter refused what parse had let through.
	f.Add(uint8(0), s.Bytes, s.Meta.GSOType, true, s.Meta.GSOSize, s.Meta.CsumStart+60, s.Meta.CsumOffset)
	r := newRig(f, 0) // one for all inputs: what one leaves behind would show at the next
	f.Fuzz(func(t *testing.T, in uint8, b []byte, gso uint8, csum bool, size, start, offset uint16) {
		if len(b) > frame.MaxLen {
			t.Skip("longer than any device delivers")
		}
		at := []*porttest.Port{r.podA, r.host, r.tunnel}[in%3]
		r.run(at, porttest.Frame{Bytes: b, Meta: frame.Meta{VNI: testVNI, GSOType: gso, NeedsCsum: csum,
			GSOSize: size, CsumStart: start, CsumOffset: offset}})
		if l := r.sw.Ledger(); l.Check() != nil {
			t.Fatal(l.Check())
		}
		for _, p := range []*porttest.Port{r.podA, r.podB, r.host, r.tunnel} {
			p.Reset()
		}
	})
}
