package wire

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"tapyard/bench/seed"
)

func TestMACText(t *testing.T) {
	r := seed.Rand(t)
	for range rounds(2000) {
		m := MAC(randomBytes(r, 6))
		if want := net.HardwareAddr(m[:]).String(); m.String() != want {
			t.Fatalf("String() = %s, want %s", m, want)
		}
		for _, text := range []string{
			m.String(),
			strings.ToUpper(m.String()),
			strings.ReplaceAll(m.String(), ":", "-"),
		} {
			var got MAC
			if err := got.UnmarshalText([]byte(text)); err != nil || got != m {
				t.Fatalf("UnmarshalText(%q) = %v, %v", text, got, err)
			}
		}
	}
}

func TestParseMACRefuses(t *testing.T) {
	for _, text := range []string{
		"", "02", "02:00:00:00:00", "02:00:00:00:00:0g", "02:00:00:00:00:00:00:01",
		"02:00:00:00:00:01 ", "10.0.0.1",
	} {
		m := Broadcast
		err := m.UnmarshalText([]byte(text))
		if err == nil || !strings.Contains(err.Error(), "six octets") {
			t.Errorf("UnmarshalText(%q): error %v does not say what is wanted", text, err)
		}
		if m != Broadcast {
			t.Errorf("UnmarshalText(%q) changed the address in spite of its error", text)
		}
	}
}

func TestMACKinds(t *testing.T) {
	for _, c := range []struct {
		mac                        string
		multicast, broadcast, zero bool
	}{
		{"00:00:00:00:00:00", false, false, true},
		{"02:00:00:00:00:01", false, false, false},
		{"01:80:c2:00:00:00", true, false, false},
		{"33:33:00:00:00:01", true, false, false},
		{"ff:ff:ff:ff:ff:fe", true, false, false},
		{"ff:ff:ff:ff:ff:ff", true, true, false},
	} {
		m := mustMAC(c.mac)
		if m.IsMulticast() != c.multicast || m.IsBroadcast() != c.broadcast || m.IsZero() != c.zero {
			t.Errorf("%v: multicast %t broadcast %t zero %t", m, m.IsMulticast(), m.IsBroadcast(), m.IsZero())
		}
	}
}

// The vector is from coreutils: printf node-a | sha256sum. Peers of other
// versions compute the same address, so it may never change.
func TestRouterMAC(t *testing.T) {
	if got, want := RouterMAC("node-a"), mustMAC("02:66:57:0f:f0:5a"); got != want {
		t.Errorf("RouterMAC(node-a) = %v, want %v", got, want)
	}
}

func TestMulticastMAC(t *testing.T) {
	for addr, want := range map[string]string{
		"224.0.0.251":      "01:00:5e:00:00:fb",
		"239.255.255.250":  "01:00:5e:7f:ff:fa", // the 24th bit is lost
		"ff02::1":          "33:33:00:00:00:01",
		"ff02::1:ff12:345": "33:33:ff:12:03:45",
	} {
		if got := MulticastMAC(netip.MustParseAddr(addr)); got != mustMAC(want) {
			t.Errorf("MulticastMAC(%s) = %v, want %v", addr, got, want)
		}
	}
}
