package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapyard/switch/observe"
)

// table renders what an agent would answer.
func table(t *testing.T, name string, answer any) string {
	t.Helper()
	raw, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	v := views[slices.IndexFunc(views, func(v view) bool { return v.name == name })]
	if err := v.table(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// The counts stand in columns, the sentences below them, where 120 columns hold them.
func TestDropsTable(t *testing.T) {
	got := table(t, "drops", []observe.Drop{
		{Port: "default/web-0", Reason: "no_route", Frames: 12, WireFrames: 40, Explain: "no route to the destination", ExampleAt: time.Now().Add(-200 * time.Minute),
			Example: "TCP SYN 10.244.1.3:40112 > 10.244.9.9:80, 74 bytes, from 0a:00:00:00:00:03 to 02:00:00:00:00:01"},
		{Port: "vxlan", Reason: "unknown_peer", Frames: 3, WireFrames: 3, Explain: "see 'tapyard show peers'"},
	})
	want := `PORT           REASON        FRAMES  WIRE  LAST EXAMPLE
default/web-0  no_route      12      40    3 h ago
    no route to the destination
    TCP SYN 10.244.1.3:40112 > 10.244.9.9:80, 74 bytes, from 0a:00:00:00:00:03 to 02:00:00:00:00:01
vxlan          unknown_peer  3       3     -
    see 'tapyard show peers'
`
	if got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
	if got, want := table(t, "drops", []observe.Drop{}), "PORT  REASON  FRAMES  WIRE  LAST EXAMPLE\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// No cell of a row is empty, or awk counts wrong.
func TestRoutesTable(t *testing.T) {
	got := table(t, "routes", json.RawMessage(`[
		{"vni": 1, "prefix": "10.244.0.0/16", "kind": "no_route", "via": "", "mtu": 0, "port": "", "peer": ""},
		{"vni": 1, "prefix": "10.244.2.0/24", "kind": "forward", "via": "02:00:00:00:00:09", "mtu": 1450, "port": "vxlan", "peer": "n2"}]`))
	want := `VNI  PREFIX         KIND      VIA                MTU   PORT   PEER
1    10.244.0.0/16  no_route  -                  -     -      -
1    10.244.2.0/24  forward   02:00:00:00:00:09  1450  vxlan  n2
`
	if got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
}

func TestAge(t *testing.T) {
	now := time.Now()
	for ago, want := range map[time.Duration]string{
		-time.Hour: "0 s ago", 60*time.Second - 1: "59 s ago", 60 * time.Second: "1 min ago",
		3*time.Hour + 59*time.Minute: "3 h ago", 49 * time.Hour: "2 d ago",
	} {
		if got := age(now, now.Add(-ago)); got != want {
			t.Errorf("%v: %q, want %q", ago, got, want)
		}
	}
}

func TestShowWithoutAnAgentNamesTheSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	cmd := showCommand()
	cmd.SetArgs([]string{"drops", "--socket", socket})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "the socket "+socket+" is not there") {
		t.Errorf("error %v, want one that names %s", err, socket)
	}
}
