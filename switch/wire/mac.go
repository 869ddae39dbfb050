package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
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
