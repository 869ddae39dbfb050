package wire

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// virtioNetHdr is struct virtio_net_hdr of linux/virtio_net.h.
type virtioNetHdr struct {
	Flags, GSOType                         uint8
	HdrLen, GSOSize, CsumStart, CsumOffset uint16
}

func virtioFields(v VirtioNet) VirtioNetFields {
	return VirtioNetFields{
		Flags: v.Flags(), GSOType: v.GSOType(), HdrLen: v.HdrLen(),
		GSOSize: v.GSOSize(), CsumStart: v.CsumStart(), CsumOffset: v.CsumOffset(),
	}
}

func TestVirtioNet(t *testing.T) {
	want := VirtioNetFields{
		Flags: NeedsCsum, GSOType: GSOTCPv4 | GSOECN,
		HdrLen: 66, GSOSize: 1448, CsumStart: 34, CsumOffset: TCPChecksumOffset,
	}
	var native bytes.Buffer
	if err := binary.Write(&native, binary.NativeEndian, virtioNetHdr(want)); err != nil {
		t.Fatal(err)
	}
	got := VirtioNet(dirty(VirtioNetLen))
	got.Encode(&want)
	checkEncoded(t, got, native.Bytes())
	if fields := virtioFields(native.Bytes()); fields != want {
		t.Errorf("decoded %+v, want %+v", fields, want)
	}
	checkShort(t, got, func(b []byte) bool { return VirtioNet(b).IsValid() })
}

func fuzzVirtioNet(t *testing.T, b []byte) {
	v := VirtioNet(b)
	_ = v.String()
	if !v.IsValid() {
		return
	}
	fields := virtioFields(v)
	again := VirtioNet(dirty(VirtioNetLen))
	again.Encode(&fields)
	checkEncoded(t, again, b[:VirtioNetLen])
}
