package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapyard/switch/attach"
	"tapyard/switch/observe"
	"tapyard/switch/port"
	"tapyard/switch/wire"
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

// A port of several queues names the worker of each, in one cell, and one with limits says which.
func TestPortsTable(t *testing.T) {
	got := table(t, "ports", []observe.Port{{ID: 1, Name: "tapyard0", Kind: "host", VNI: 1, Workers: []int{1}}, {ID: 2, Name: "default/web-0", Kind: "tap", VNI: 1, Workers: []int{1, 0}, Bandwidth: &attach.Bandwidth{IngressRate: 1500e6}}})
	want := `ID  PORT           KIND  VNI  ADDRESSES  MAC  MTU  WORKER  RX FRAMES  RX WIRE  TX FRAMES  TX WIRE  DROPS  KERNEL DROPS  TO/FROM POD  LAST ERROR
1   tapyard0       host  1    -          -    -    1       0          0        0          0        0      0             -            -
2   default/web-0  tap   1    -          -    -    1,0     0          0        0          0        0      0             1.5 Gb/s/-   -
`
	if got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
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

// The reason for the engine stands once, however many TAPs there are.
func TestOffloadsTable(t *testing.T) {
	tap := observe.Offload{Port: "tapyard0", Checksum: true, TSO4: true, TSO6: true, ECN: true, USO: true, Engine: port.IOUring,
		EngineReason: "measured: it is the faster one", ReadWrite: 562, IOUring: 479}
	pod := tap
	pod.Port, pod.OneQueue = "default/web-0", "one queue instead of 2, because the kernel refuses eBPF"
	got := table(t, "offloads", []observe.Offload{{Port: "vxlan", Checksum: true, Trains: "off"}, tap, pod})
	want := `PORT           ENGINE    CHECKSUM  TSO4   TSO6   ECN    USO    TRAINS
vxlan          -         true      false  false  false  false  off
tapyard0       io_uring  true      true   true   true   true   -
default/web-0  io_uring  true      true   true   true   true   -
    one queue instead of 2, because the kernel refuses eBPF
TAPs are read and written by io_uring: measured: it is the faster one.
In the trial at start a small frame from TAP to TAP took 562 ns by readwrite and 479 ns by io_uring.
`
	if got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
	if got := table(t, "offloads", []observe.Offload{{Port: "vxlan"}}); strings.Count(got, "\n") != 2 {
		t.Errorf("without a TAP:\n%s", got)
	}
}

func TestFDBTable(t *testing.T) {
	now := time.Now()
	got := table(t, "fdb", []observe.FDBEntry{
		{VNI: 1, MAC: wire.MAC{0x0a, 5: 3}, Port: "default/web-0", Static: true},
		{VNI: 200, MAC: wire.MAC{0x0a, 5: 4}, Port: "vxlan", Peer: "n2", LastSeen: now.Add(-70 * time.Second), Moves: 5, FrozenUntil: now.Add(99*time.Second + time.Second/2)},
		{VNI: 200, MAC: wire.MAC{0x0a, 5: 5}, Port: "eth1", LastSeen: now, Moves: 5, FrozenUntil: now.Add(-time.Second)},
	})
	want := `VNI  MAC                PORT           PEER  STATIC  LAST SEEN  MOVES  HELD FOR
1    0a:00:00:00:00:03  default/web-0  -     true    -          -      -
200  0a:00:00:00:00:04  vxlan          n2    false   1 min ago  5      100 s
200  0a:00:00:00:00:05  eth1           -     false   0 s ago    5      -
`
	if got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
}

func TestConfigTable(t *testing.T) {
	got := table(t, "config", &config{Name: "n1", Networks: []networkConfig{{Name: "blue", VNI: 200, L2: l2Stretched}}, Underlay: []netip.Addr{netip.MustParseAddr("192.168.1.11")}})
	for _, want := range []string{`{"l2":"stretched","name":"blue",`, "[192.168.1.11]\n", "name         n1\n", "uplink       -\n", "podSubnets   -\n", "vni          0\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
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

func TestFlowsTable(t *testing.T) {
	render := func(f observe.Flows) string {
		raw, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := flowTable(raw, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	got := render(observe.Flows{Enabled: true, Capacity: 262144, Live: 2, Created: 5, Ended: 2, Evicted: 1, Refused: 7, Flows: []observe.Flow{
		{VNI: 1, Protocol: "tcp", From: netip.MustParseAddrPort("10.244.1.3:40000"), To: netip.MustParseAddrPort("10.244.2.3:80"), State: "established",
			Port: "default/web-0", LastSeen: time.Now().Add(-61 * time.Second), Timeout: 8000},
		{VNI: 200, Protocol: "icmpv6", From: netip.MustParseAddrPort("[fd00::1]:7"), To: netip.MustParseAddrPort("[fd00::2]:7"), State: "unreplied", LastSeen: time.Now(), Timeout: 30}}})
	want := `VNI  PROTOCOL  FROM              TO             STATE        PORT           LAST SEEN  TIMEOUT
1    tcp       10.244.1.3:40000  10.244.2.3:80  established  default/web-0  1 min ago  8000 s
200  icmpv6    [fd00::1]:7       [fd00::2]:7    unreplied    -              0 s ago    30 s
2 of 262144 places taken; since the start 5 created, 2 ended, 1 evicted early, 0 dropped with their port; 7 frames refused
`
	if got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
	if got := render(observe.Flows{}); !strings.Contains(got, "flows: true") {
		t.Errorf("%q doesn't say how to have flows tracked", got)
	}
}
