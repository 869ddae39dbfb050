package wire

import (
	"bytes"
	"net/netip"
	"testing"
)

func solicitFields(n NeighborSolicit) NeighborSolicitFields {
	mac, _ := n.LinkLayer()
	return NeighborSolicitFields{Target: n.Target(), LinkLayer: mac}
}

func advertFields(n NeighborAdvert) NeighborAdvertFields {
	mac, _ := n.LinkLayer()
	return NeighborAdvertFields{
		Router: n.Router(), Solicited: n.Solicited(), Override: n.Override(), Target: n.Target(), LinkLayer: mac,
	}
}

func pseudoND(frame []byte) uint32 {
	return PseudoHeader(frame[EthernetLen:], true, ProtoICMPv6, len(frame)-l4v6)
}

func TestNeighborSolicit(t *testing.T) {
	frame := realFrames["neighborSolicit"]
	message := NeighborSolicit(frame[l4v6:])
	want := NeighborSolicitFields{Target: netip.MustParseAddr("fd00::2"), LinkLayer: mustMAC("02:00:00:00:00:0a")}
	if got := solicitFields(message); !message.IsValid() || got != want {
		t.Errorf("decoded %+v, want %+v", got, want)
	}
	got := NeighborSolicit(dirty(want.Len()))
	got.Encode(&want)
	ICMPv6(got).UpdateChecksum(pseudoND(frame))
	checkEncoded(t, got, message)

	// Where the kernel sent it is where SolicitedNode and MulticastMAC point.
	group := SolicitedNode(want.Target)
	if dst := IPv6(frame[EthernetLen:]).Dst(); group != dst {
		t.Errorf("SolicitedNode = %v, want %v", group, dst)
	}
	if dst := Ethernet(frame).Dst(); MulticastMAC(group) != dst {
		t.Errorf("MulticastMAC = %v, want %v", MulticastMAC(group), dst)
	}
}

func TestRouterSolicit(t *testing.T) {
	message := RouterSolicit(realFrames["routerSolicit"][l4v6:])
	if mac, ok := message.LinkLayer(); !message.IsValid() || !ok || mac != mustMAC("02:00:00:00:00:0a") {
		t.Errorf("link layer %v, %t in %v", mac, ok, message)
	}
	if bare := message[:ICMPv6Len]; !bare.IsValid() {
		t.Error("one without options is refused")
	}
	for name, change := range map[string]func(b []byte) []byte{
		"an advertisement":      func(b []byte) []byte { b[icmpType] = ICMPv6RouterAdvert; return b },
		"a code":                func(b []byte) []byte { b[icmpCode] = 1; return b },
		"an option of length 0": func(b []byte) []byte { b[rsOptions+1] = 0; return b },
		"an option that is cut": func(b []byte) []byte { return b[:len(b)-1] },
		"a message that is cut": func(b []byte) []byte { return b[:ICMPv6Len-1] },
	} {
		if r := RouterSolicit(change(bytes.Clone(message))); r.IsValid() {
			t.Errorf("%s is taken: % x", name, []byte(r))
		}
	}
}

// A probe for duplicates carries no link-layer address; Linux puts a nonce (RFC
// 3971) in the option's place.
func TestNeighborSolicitProbe(t *testing.T) {
	frame := realFrames["dadSolicit"]
	message := NeighborSolicit(frame[l4v6:])
	if mac, ok := message.LinkLayer(); !message.IsValid() || ok {
		t.Errorf("link layer %v in %v", mac, message)
	}
	fields := NeighborSolicitFields{Target: netip.MustParseAddr("fe80::ff:fe00:a")}
	got := NeighborSolicit(dirty(fields.Len()))
	got.Encode(&fields)
	want := bytes.Clone(message[:NDMinLen])
	ICMPv6(want).SetChecksum(0)
	checkEncoded(t, got, want)
	checkShort(t, got, func(b []byte) bool { return NeighborSolicit(b).IsValid() })
}

func TestNeighborAdvert(t *testing.T) {
	frame := realFrames["neighborAdvert"]
	message := NeighborAdvert(frame[l4v6:])
	want := NeighborAdvertFields{
		Solicited: true, Override: true,
		Target: netip.MustParseAddr("fd00::2"), LinkLayer: mustMAC("02:00:00:00:00:0b"),
	}
	if got := advertFields(message); !message.IsValid() || got != want {
		t.Errorf("decoded %+v, want %+v", got, want)
	}
	got := NeighborAdvert(dirty(want.Len()))
	got.Encode(&want)
	ICMPv6(got).UpdateChecksum(pseudoND(frame))
	checkEncoded(t, got, message)
}

// What RFC 4861 section 7.1 makes a host discard, as far as the message shows it.
func TestNeighborSolicitRefuses(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"an advertisement":       func(b []byte) []byte { b[icmpType] = ICMPv6NeighborAdvert; return b },
		"a code":                 func(b []byte) []byte { b[icmpCode] = 1; return b },
		"a multicast target":     func(b []byte) []byte { b[ndTarget] = 0xff; return b },
		"an option of length 0":  func(b []byte) []byte { b[ndOptions+1] = 0; return b },
		"an option that is cut":  func(b []byte) []byte { b[ndOptions+1] = 2; return b },
		"half an option":         func(b []byte) []byte { return append(b, 1) },
		"a message that is cut":  func(b []byte) []byte { return b[:NDMinLen-1] },
		"a second option, empty": func(b []byte) []byte { return append(b, 0, 0, 0, 0, 0, 0, 0, 0) },
	} {
		if n := NeighborSolicit(change(bytes.Clone(realFrames["neighborSolicit"][l4v6:]))); n.IsValid() {
			t.Errorf("%s is taken: % x", name, []byte(n))
		}
	}
}

// Unknown options and those of other media are skipped.
func TestNeighborSolicitOptions(t *testing.T) {
	n := NeighborSolicit(append(bytes.Clone(realFrames["dadSolicit"][l4v6:]), unhex(`
		0102 0000 0000 0000 0000 0000 0000 0000 // source link-layer address of 14 bytes
		0201 0200 0000 0001                     // target link-layer address: not for a solicitation
		0101 0200 0000 0002                     // the one
		0101 0200 0000 0003                     // and another
	`)...))
	if mac, ok := n.LinkLayer(); !n.IsValid() || !ok || mac != mustMAC("02:00:00:00:00:02") {
		t.Errorf("link layer %v, %t", mac, ok)
	}
}

func fuzzNeighborSolicit(t *testing.T, b []byte) {
	n := NeighborSolicit(b)
	_ = n.String()
	if !n.IsValid() {
		return
	}
	fields := solicitFields(n)
	again := NeighborSolicit(dirty(fields.Len()))
	again.Encode(&fields)
	if got := solicitFields(again); !again.IsValid() || got != fields {
		t.Errorf("%+v became %+v", fields, got)
	}
}

// Each option is seen once, whole and in order: together they are the bytes that were read.
func fuzzRouterSolicit(t *testing.T, b []byte) {
	r := RouterSolicit(b)
	_ = r.String()
	if !r.IsValid() {
		return
	}
	again := bytes.Clone(b[:rsOptions])
	for options := r.Options(); len(options) > 0; {
		kind, value, rest := options.Next()
		again = append(append(again, kind, byte((len(value)+2)/ndOptionUnit)), value...)
		options = rest
	}
	if !bytes.Equal(again, b) {
		t.Errorf("% x became % x", b, again)
	}
}

func fuzzNeighborAdvert(t *testing.T, b []byte) {
	n := NeighborAdvert(b)
	_ = n.String()
	if !n.IsValid() {
		return
	}
	fields := advertFields(n)
	again := NeighborAdvert(dirty(fields.Len()))
	again.Encode(&fields)
	if got := advertFields(again); !again.IsValid() || got != fields {
		t.Errorf("%+v became %+v", fields, got)
	}
}
