package wire

import (
	"bytes"
	"testing"
)

func TestICMPv6(t *testing.T) {
	frame := realFrames["icmpv6Echo"]
	echo := ICMPv6(frame[l4v6:])
	if echo.Type() != ICMPv6Echo || echo.Code() != 0 || echo.ID() != 6633 || echo.Seq() != 1 {
		t.Error(echo)
	}
	again := ICMPv6(dirty(len(echo)))
	again.Encode(&ICMPv6Fields{Type: ICMPv6Echo, Rest: 6633<<16 | 1})
	copy(again.Payload(), echo.Payload())
	again.UpdateChecksum(PseudoHeader(frame[EthernetLen:], true, ProtoICMPv6, len(echo)))
	checkEncoded(t, again, echo)
	checkShort(t, echo[:ICMPv6MinLen], func(b []byte) bool { return ICMPv6(b).IsValid() })
}

// RFC 4443 section 3.2: the MTU is the whole second word.
func TestICMPv6MTU(t *testing.T) {
	m := ICMPv6(dirty(ICMPv6Len))
	m.Encode(&ICMPv6Fields{Type: ICMPv6PacketTooBig, Rest: 0x12345})
	checkEncoded(t, m, unhex("0200 0000 0001 2345"))
	if m.MTU() != 0x12345 {
		t.Errorf("MTU %d", m.MTU())
	}
}

func fuzzICMPv6(t *testing.T, b []byte) {
	m := ICMPv6(b)
	_ = m.String()
	if !m.IsValid() {
		return
	}
	if len(m) >= ICMPv6Len {
		again := ICMPv6(bytes.Clone(b))
		again.Encode(&ICMPv6Fields{Type: m.Type(), Code: m.Code(), Rest: m.MTU()})
		again.SetChecksum(m.Checksum())
		checkEncoded(t, again, b)
	}
	if m.UpdateChecksum(7); slowSum(b, 7) != 0xffff || !m.ChecksumOK(7) {
		t.Errorf("checksum %#04x of % x", m.Checksum(), b)
	}
}
