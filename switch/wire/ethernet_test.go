package wire

import "testing"

func ethernetFields(e Ethernet) EthernetFields {
	return EthernetFields{Dst: e.Dst(), Src: e.Src(), EtherType: e.EtherType()}
}

func TestEthernet(t *testing.T) {
	header := Ethernet(realFrames["arpReply"][:EthernetLen])
	want := EthernetFields{
		Dst:       mustMAC("02:00:00:00:00:0a"),
		Src:       mustMAC("02:00:00:00:00:0b"),
		EtherType: EtherTypeARP,
	}
	if got := ethernetFields(header); got != want {
		t.Errorf("decoded %+v, want %+v", got, want)
	}
	got := Ethernet(dirty(EthernetLen))
	got.Encode(&want)
	checkEncoded(t, got, header)
	checkShort(t, header, func(b []byte) bool { return Ethernet(b).IsValid() })
}

func fuzzEthernet(t *testing.T, b []byte) {
	e := Ethernet(b)
	_ = e.String()
	if !e.IsValid() {
		return
	}
	fields := ethernetFields(e)
	again := Ethernet(dirty(EthernetLen))
	again.Encode(&fields)
	checkEncoded(t, again, b[:EthernetLen])
	if len(e.Payload()) != len(b)-EthernetLen {
		t.Errorf("payload of %d bytes in a frame of %d", len(e.Payload()), len(b))
	}
}
