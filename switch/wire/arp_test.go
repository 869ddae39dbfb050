package wire

import (
	"net/netip"
	"testing"
)

func arpFields(a ARP) ARPFields {
	return ARPFields{
		Op: a.Op(), SenderMAC: a.SenderMAC(), SenderIP: a.SenderIP(),
		TargetMAC: a.TargetMAC(), TargetIP: a.TargetIP(),
	}
}

func TestARP(t *testing.T) {
	packet := ARP(realFrames["arpReply"][EthernetLen:])
	want := ARPFields{
		Op:        ARPReply,
		SenderMAC: mustMAC("02:00:00:00:00:0b"),
		SenderIP:  netip.MustParseAddr("10.0.0.2"),
		TargetMAC: mustMAC("02:00:00:00:00:0a"),
		TargetIP:  netip.MustParseAddr("10.0.0.1"),
	}
	if got := arpFields(packet); got != want {
		t.Errorf("decoded %+v, want %+v", got, want)
	}
	got := ARP(dirty(ARPLen))
	got.Encode(&want)
	checkEncoded(t, got, packet)
	checkShort(t, packet, func(b []byte) bool { return ARP(b).IsValid() })
}

func fuzzARP(t *testing.T, b []byte) {
	a := ARP(b)
	_ = a.String()
	if !a.IsValid() {
		return
	}
	fields := arpFields(a)
	again := ARP(dirty(ARPLen))
	again.Encode(&fields)
	checkEncoded(t, again, b[:ARPLen])
}
