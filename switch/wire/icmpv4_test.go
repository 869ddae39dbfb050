package wire

import (
	"bytes"
	"testing"
)

func TestICMPv4(t *testing.T) {
	echo := ICMPv4(realFrames["icmpv4Echo"][l4v4:])
	if echo.Type() != ICMPv4Echo || echo.Code() != 0 || echo.ID() != 6632 || echo.Seq() != 1 {
		t.Error(echo)
	}
	again := ICMPv4(dirty(len(echo)))
	again.Encode(&ICMPv4Fields{Type: ICMPv4Echo, Rest: 6632<<16 | 1})
	copy(again.Payload(), echo.Payload())
	again.UpdateChecksum()
	checkEncoded(t, again, echo)
	checkShort(t, echo[:ICMPv4Len], func(b []byte) bool { return ICMPv4(b).IsValid() })
}

// The kernel quotes the datagram that it could not deliver.
func TestICMPv4Quote(t *testing.T) {
	m := ICMPv4(realFrames["icmpv4Unreachable"][l4v4:])
	if m.Type() != ICMPv4Unreachable || m.Code() != ICMPv4PortUnreachable {
		t.Error(m)
	}
	if quoted := realFrames["udpv4"][EthernetLen:]; !bytes.Equal(m.Payload(), quoted) {
		t.Errorf("quotes % x, want % x", m.Payload(), quoted)
	}
}

// RFC 1191 section 4: the MTU stands in the lower half of the second word.
func TestICMPv4MTU(t *testing.T) {
	m := ICMPv4(dirty(ICMPv4Len))
	m.Encode(&ICMPv4Fields{Type: ICMPv4Unreachable, Code: ICMPv4FragNeeded, Rest: 1450})
	checkEncoded(t, m, unhex("0304 0000 0000 05aa"))
	if m.MTU() != 1450 {
		t.Errorf("MTU %d", m.MTU())
	}
}

func fuzzICMPv4(t *testing.T, b []byte) {
	m := ICMPv4(b)
	_ = m.String()
	if !m.IsValid() {
		return
	}
	again := ICMPv4(bytes.Clone(b))
	again.Encode(&ICMPv4Fields{Type: m.Type(), Code: m.Code(), Rest: uint32(m.ID())<<16 | uint32(m.Seq())})
	again.SetChecksum(m.Checksum())
	checkEncoded(t, again, b)
	if again.UpdateChecksum(); slowSum(again, 0) != 0xffff || !again.ChecksumOK() {
		t.Errorf("checksum %#04x of % x", again.Checksum(), b)
	}
}
