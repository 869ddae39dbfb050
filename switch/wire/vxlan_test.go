package wire

import (
	"bytes"
	"testing"
)

func TestVXLAN(t *testing.T) {
	message := VXLAN(realFrames["vxlanARP"][l4v4+UDPLen:])
	if message.VNI() != 4242 {
		t.Errorf("VNI %d", message.VNI())
	}
	if inner := Ethernet(message.Payload()); inner.EtherType() != EtherTypeARP {
		t.Errorf("inner frame %v", inner)
	}
	got := VXLAN(dirty(VXLANLen))
	got.Encode(&VXLANFields{VNI: 4242})
	checkEncoded(t, got, message[:VXLANLen])
	checkShort(t, message[:VXLANLen], func(b []byte) bool { return VXLAN(b).IsValid() })
}

// RFC 7348 section 5: without the I flag the VNI doesn't count; reserved bits are
// "ignored on receipt".
func TestVXLANFlags(t *testing.T) {
	header := VXLAN(bytes.Repeat([]byte{0xff}, VXLANLen))
	if !header.IsValid() || header.VNI() != 0xffffff {
		t.Errorf("reserved bits matter: %v", header)
	}
	if header[vxlanFlags] = 0xf7; header.IsValid() {
		t.Errorf("taken without the I flag: %v", header)
	}
}

func fuzzVXLAN(t *testing.T, b []byte) {
	v := VXLAN(b)
	_ = v.String()
	if !v.IsValid() {
		return
	}
	again := VXLAN(dirty(VXLANLen))
	again.Encode(&VXLANFields{VNI: v.VNI()})
	if !again.IsValid() || again.VNI() != v.VNI() || !bytes.Equal(again[vxlanVNI:7], b[vxlanVNI:7]) {
		t.Errorf("% x became % x", b[:VXLANLen], []byte(again))
	}
}
