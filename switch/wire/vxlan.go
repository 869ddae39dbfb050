package wire

import (
	"encoding/binary"
	"fmt"
)

// VXLAN is a view over a VXLAN header (RFC 7348 section 5) and the inner frame
// behind it. Getters and setters may be called only after IsValid said true.
type VXLAN []byte

const (
	vxlanFlags = 0 // 8 bits; only I is defined
	vxlanVNI   = 4 // 24 bits, then 8 reserved

	vxlanFlagI = 0x08

	// VXLANLen is the length of the header.
	VXLANLen = 8
)

// IsValid says whether the header is there and the I flag, which makes the VNI
// count, is set. Reserved bits are ignored, as the RFC demands.
func (v VXLAN) IsValid() bool { return len(v) >= VXLANLen && v[vxlanFlags]&vxlanFlagI != 0 }

// VNI returns the 24-bit network identifier.
func (v VXLAN) VNI() uint32 { return binary.BigEndian.Uint32(v[vxlanVNI:]) >> 8 }

// Payload returns the inner frame.
func (v VXLAN) Payload() []byte { return v[VXLANLen:] }

// SetVNI sets the lower 24 bits of vni, and zeroes the reserved byte behind them.
func (v VXLAN) SetVNI(vni uint32) { binary.BigEndian.PutUint32(v[vxlanVNI:], vni<<8) }

// VXLANFields are the fields of a VXLAN header. VNI has 24 bits.
type VXLANFields struct {
	VNI uint32
}

// Encode writes the header, reserved bits zero; v must have VXLANLen bytes.
func (v VXLAN) Encode(f *VXLANFields) {
	binary.BigEndian.PutUint32(v[vxlanFlags:], vxlanFlagI<<24)
	v.SetVNI(f.VNI)
}

// String describes the header for people.
func (v VXLAN) String() string {
	if !v.IsValid() {
		return invalid("vxlan", v)
	}
	return fmt.Sprintf("vxlan vni %d", v.VNI())
}
