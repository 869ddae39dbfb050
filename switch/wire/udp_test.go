package wire

import "testing"

func udpFields(u UDP) UDPFields {
	return UDPFields{SrcPort: u.SrcPort(), DstPort: u.DstPort(), Length: u.Length(), Checksum: u.Checksum()}
}

func TestUDP(t *testing.T) {
	datagram := UDP(realFrames["udpv4"][l4v4:])
	want := UDPFields{SrcPort: 40000, DstPort: 53, Length: 15, Checksum: 0xa50a}
	if got := udpFields(datagram); got != want {
		t.Errorf("decoded %+v, want %+v", got, want)
	}
	if got := string(datagram.Payload()); got != "tapyard" {
		t.Errorf("payload %q", got)
	}
	got := UDP(dirty(UDPLen))
	got.Encode(&want)
	checkEncoded(t, got, datagram[:UDPLen])
	checkShort(t, datagram, func(b []byte) bool { return UDP(b).IsValid() })
}

// RFC 768: "If the computed checksum is zero, it is transmitted as all ones", since
// zero says that there is none.
func TestUDPChecksumZero(t *testing.T) {
	u := UDP(unhex("0000 0000 0008 0000"))
	pseudo := uint32(0xffff - 8) // with the length word this sums to 0xffff
	if u.UpdateChecksum(pseudo); u.Checksum() != 0xffff || !u.ChecksumOK(pseudo) {
		t.Errorf("checksum %#04x", u.Checksum())
	}
	if u.SetChecksum(0); !u.ChecksumOK(1) {
		t.Error("an absent checksum is held to be wrong")
	}
}

func fuzzUDP(t *testing.T, b []byte) {
	u := UDP(b)
	_ = u.String()
	if !u.IsValid() {
		return
	}
	fields := udpFields(u)
	again := UDP(dirty(UDPLen))
	again.Encode(&fields)
	checkEncoded(t, again, b[:UDPLen])
	if u.UpdateChecksum(7); slowSum(b, 7) != 0xffff {
		t.Errorf("checksum %#04x of % x", u.Checksum(), b)
	}
}
