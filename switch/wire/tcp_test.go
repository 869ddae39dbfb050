package wire

import (
	"bytes"
	"testing"
)

func tcpFields(s TCP) TCPFields {
	return TCPFields{
		SrcPort: s.SrcPort(), DstPort: s.DstPort(), Seq: s.Seq(), Ack: s.Ack(), DataOffset: s.DataOffset(),
		Flags: s.Flags(), Window: s.Window(), Checksum: s.Checksum(), Urgent: s.Urgent(),
	}
}

func TestTCP(t *testing.T) {
	segment := TCP(realFrames["tcpv4"][l4v4:])
	want := TCPFields{
		SrcPort: 45866, DstPort: 80, Seq: 2438815141, DataOffset: 40,
		Flags: TCPSyn, Window: 64240, Checksum: 0x5779,
	}
	if got := tcpFields(segment); got != want {
		t.Errorf("decoded %+v, want %+v", got, want)
	}
	if got := segment.Options(); !bytes.Equal(got, segment[20:40]) || len(segment.Payload()) != 0 {
		t.Errorf("options % x, payload % x", got, segment.Payload())
	}
	got := TCP(dirty(TCPMinLen))
	got.Encode(&want)
	checkEncoded(t, got, segment[:TCPMinLen])
	checkShort(t, segment, func(b []byte) bool { return TCP(b).IsValid() })
}

func fuzzTCP(t *testing.T, b []byte) {
	s := TCP(b)
	_ = s.String()
	if !s.IsValid() {
		return
	}
	if TCPMinLen+len(s.Options())+len(s.Payload()) != len(b) {
		t.Errorf("options of %d bytes, payload of %d: %v", len(s.Options()), len(s.Payload()), s)
	}
	fields := tcpFields(s)
	again := TCP(dirty(TCPMinLen))
	again.Encode(&fields)
	if got := tcpFields(again); got != fields {
		t.Errorf("%+v became %+v", fields, got)
	}
	if s.UpdateChecksum(7); slowSum(b, 7) != 0xffff || !s.ChecksumOK(7) {
		t.Errorf("checksum %#04x of % x", s.Checksum(), b)
	}
}
