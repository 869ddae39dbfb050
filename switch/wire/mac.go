package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
)

// MAC is an IEEE 802 48-bit address in the order of transmission. It is
// comparable; its zero value means "none".
type MAC [6]byte

// Broadcast is the address of every station.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ParseMAC reads six octets in one of the notations of net.ParseMAC:
// 02:00:5e:10:00:01, 02-00-5e-10-00-01 or 0200.5e10.0001, in either case.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("parse MAC %q: want six octets such as 02:00:5e:10:00:01", s)
	}
	return MAC(hw), nil
}

// RouterMAC is the switch's own address on the node of that name: 02 (locally
// administered, unicast) and the first 5 bytes of the name's SHA-256, so that
// peers compute it instead of exchanging it.
func RouterMAC(nodeName string) MAC {
	sum := sha256.Sum256([]byte(nodeName))
	return MAC{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// IsMulticast says whether the group bit is set; Broadcast counts too.
func (m MAC) IsMulticast() bool { return m[0]&1 != 0 }

// IsBroadcast says whether m is Broadcast.
func (m MAC) IsBroadcast() bool { return m == Broadcast }

// IsZero says whether m is the zero value.
func (m MAC) IsZero() bool { return m == MAC{} }

// String returns m as 02:00:5e:10:00:01.
func (m MAC) String() string {
	b, _ := m.MarshalText()
	return string(b)
}

// MarshalText returns m as String does; it never fails.
func (m MAC) MarshalText() ([]byte, error) {
	b := make([]byte, 0, len("02:00:5e:10:00:01"))
	for i := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = hex.AppendEncode(b, m[i:i+1])
	}
	return b, nil
}

// UnmarshalText reads what ParseMAC reads. After an error m is unchanged.
func (m *MAC) UnmarshalText(text []byte) error {
	parsed, err := ParseMAC(string(text))
	if err != nil {
		return err
	}
	*m = parsed
	return nil
}

// LinkLocal returns the link-local address that an interface with the MAC makes for
// itself (RFC 4291 appendix A: modified EUI-64).
func LinkLocal(m MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// IsReserved says that the address is one of 01-80-C2-00-00-00 to -0F, which a
// bridge doesn't forward (IEEE 802.1Q table 8-1).
func (m MAC) IsReserved() bool {
	return [5]byte(m[:5]) == [5]byte{0x01, 0x80, 0xc2} && m[5] <= 0x0f
}
