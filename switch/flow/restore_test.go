package flow

import (
	"net/netip"
	"slices"
	"testing"

	"tapyard/switch/wire"
)

// Another table, with other seeds and owners, goes on where this one was: the same flows, and the same answer to what
// comes next.
func TestRestore(t *testing.T) {
	at := netip.MustParseAddrPort
	talks := []talk{
		{1, wire.ProtoTCP, at("10.0.0.1:40000"), at("10.0.0.2:80")},
		{1, wire.ProtoTCP, at("10.0.0.2:40000"), at("10.0.0.1:80")}, // the opener is the higher end
		{9, wire.ProtoUDP, at("10.0.0.9:5000"), at("10.0.0.2:53")},
		{1, wire.ProtoTCP, at("[fd00::2]:40000"), at("[fd00::1]:80")},
		{1, wire.ProtoICMPv4, at("10.0.0.1:77"), at("10.0.0.2:77")},
		{1, wire.ProtoICMPv6, at("[fd00::1]:78"), at("[fd00::2]:78")},
	}
	const syn, synAck, fin, ack = 2, 18, 17, 16
	one, two := New(1000, 4), New(5000, 10)
	for _, c := range talks {
		track(one, 100, Owner{3, 100}, c.heard(t, false, syn), c.heard(t, true, synAck), c.heard(t, false, ack))
	}
	track(one, 5, Owner{3, 100}, talk{1, wire.ProtoUDP, at("10.0.0.9:1"), at("10.0.0.2:2")}.heard(t, false, 0)) // silent since
	before := one.Entries(110e9, 100, all)
	if len(before) != len(talks) {
		t.Fatalf("%d flows, want %d", len(before), len(talks))
	}
	for e := range one.All(110e9) {
		e.Owner += 4
		if !two.Restore(110e9, &e, len(talks)) {
			t.Errorf("not restored: %+v", e)
		}
		if two.Restore(110e9, &e, len(talks)) {
			t.Errorf("restored twice: %+v", e)
		}
	}
	for i := range before {
		before[i].Owner += 4
	}
	if after := two.Entries(110e9, 100, all); !slices.Equal(after, before) {
		t.Errorf("restored\n%+v, want\n%+v", after, before)
	}
	for _, c := range talks { // the next frame is the answerer's FIN
		for _, table := range []*Table{one, two} {
			track(table, 111, Owner{1, 100}, c.heard(t, true, fin))
		}
	}
	want := one.Entries(112e9, 100, all)
	for i := range want {
		want[i].Owner += 4
	}
	if got := two.Entries(112e9, 100, all); !slices.Equal(got, want) {
		t.Errorf("a frame later\n%+v, want\n%+v", got, want)
	}
	if s := two.Stats(); s.Live != len(talks) || s.Created != uint64(len(talks)) {
		t.Errorf("%+v", s)
	}
}

func TestRestoreRefuses(t *testing.T) {
	good := Entry{VNI: 1, Proto: wire.ProtoTCP, From: netip.MustParseAddrPort("10.0.0.1:1"), To: netip.MustParseAddrPort("10.0.0.2:2"),
		State: Established, Owner: 3, LastSeen: 100}
	for name, change := range map[string]func(*Entry){
		"expired":           func(e *Entry) { e.LastSeen = 100 - 8000 },
		"an unknown state":  func(e *Entry) { e.State = numStates },
		"no state":          func(e *Entry) { e.State = 0 },
		"mixed families":    func(e *Entry) { e.To = netip.MustParseAddrPort("[fd00::1]:2") },
		"no address":        func(e *Entry) { e.From = netip.AddrPort{} },
		"an unknown owner":  func(e *Entry) { e.Owner = 4 },
		"more than a share": func(e *Entry) { e.From = netip.MustParseAddrPort("10.0.0.3:1") },
	} {
		table, e := New(1000, 4), good
		share := 1
		if name == "more than a share" && !table.Restore(100e9, &good, share) {
			t.Fatal("the first one")
		}
		if change(&e); table.Restore(100e9, &e, share) {
			t.Errorf("%s: restored %+v", name, e)
		}
	}
}
