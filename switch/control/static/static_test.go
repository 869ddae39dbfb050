package static

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tapyard/switch/control"
)

const good = `
clusterCIDRs: [10.244.0.0/16, "fd00:10:244::/48"]
peers:
- {name: n2, underlay: 192.168.1.12, podSubnets: [10.244.2.0/24], mac: "02:00:00:00:00:02"}
- name: n3
  underlay: [192.168.1.13, "fd00::13"]
  podSubnets: [10.244.3.0/24]
`

func TestParse(t *testing.T) {
	s, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Peers) != 2 || s.Peers[0].Underlay[0] != netip.MustParseAddr("192.168.1.12") || len(s.Peers[1].Underlay) != 2 ||
		s.Peers[0].MAC.String() != "02:00:00:00:00:02" || len(s.ClusterCIDRs) != 2 {
		t.Errorf("parsed %+v", s)
	}
}

func TestWhatIsWrongIsNamedWithLineKeyAndWayOut(t *testing.T) {
	for text, want := range map[string]string{
		"clusterCIDRs: [10.244.0.0/16]\npeers:\n- name: n1\n- name: n3\n- name: n2\n  underlay: n2.example\n": `line 6: peers[2] (n2): underlay: "n2.example" is not an IP address; names are not resolved, write the address`,
		"peers: [{name: n2, underlay: [1.2.3.4, 192.168.1.300]}]":                                             `line 1: peers[0] (n2): underlay[1]: "192.168.1.300" is not an IP address; names are not resolved, write the address`,
		"peers: [{name: n2, underlay: 192.168.1.12/24}]":                                                      `line 1: peers[0] (n2): underlay: "192.168.1.12/24" is not an IP address; leave out the length`,
		"clusterCIDRs: [10.244.0.0]":                                                                          `line 1: clusterCIDRs[0]: "10.244.0.0" has no length; write the range, for example 10.244.0.0/24`,
		"clusterCIDRs: [\"fd00:10::5\"]":                                                                      `line 1: clusterCIDRs[0]: "fd00:10::5" has no length; write the range, for example fd00:10::/64`,
		"clusterCIDRs: 10.244.0.0/16":                                                                         `line 1: clusterCIDRs: here belongs a list: [value, value]`,
		"peers: [{name: n2, podSubnets: [10.0.0.0/33]}]":                                                      `line 1: peers[0] (n2): podSubnets[0]: "10.0.0.0/33" is not an address range; write address and length, for example 10.244.1.0/24`,
		"peers: [{name: n2, mac: 02-00}]":                                                                     `line 1: peers[0] (n2): mac: parse MAC "02-00": want six octets such as 02:00:5e:10:00:01`,
		"peers: [{name: n2, podSubnet: [10.0.0.0/8]}]":                                                        `line 1: peers[0] (n2): unknown key "podSubnet"; there are name, underlay, podSubnets, mac`,
		"peers:\n- name: n2\n  underlay: {a: 1}":                                                              `line 3: peers[0] (n2): underlay: here belongs a list: [value, value]`,
		"peers: [n2]":                                                                                         `line 1: peers[0]: here belong keys: name, underlay, podSubnets, mac`,
		"peers: [{name: [n2]}]":                                                                               `line 1: peers[0]: name: here belongs a single value`,
		"- name: n2":                                                                                          `line 1: here belong keys: clusterCIDRs, peers`,
		"common: &a {underlay: x}\npeers: [*a, {<<: *a, name: n3, mac: 1}]":                                   "line 1: unknown key \"common\"; there are clusterCIDRs, peers\nline 1: peers[0]: underlay: \"x\" is not an IP address; names are not resolved, write the address\nline 2: peers[1] (n3): mac: parse MAC \"1\": want six octets such as 02:00:5e:10:00:01",
		"peers: [{name: n2, underlay: x}]\nclusterCIDRs: [y]":                                                 "line 1: peers[0] (n2): underlay: \"x\" is not an IP address; names are not resolved, write the address\nline 2: clusterCIDRs[0]: \"y\" is not an address range; write address and length, for example 10.244.1.0/24",
		"":                          "the file is empty; a node without peers writes 'peers: []'",
		"peers: []\n---\npeers: []": "more than one YAML document; join them",
		"peers: [{name: n2, underlay: [1.2.3.4, nonsense]": "yaml: line 1: did not find expected ',' or '}'",
		"peers: []\npeers: []":                             "yaml: unmarshal errors:\n  line 2: mapping key \"peers\" already defined at line 1",
	} {
		got := ""
		if _, err := Parse([]byte(text)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q:\n%s\nwant\n%s", text, got, want)
		}
	}
}

// The types that only tapyard.yaml has.
func TestDecodeAdvice(t *testing.T) {
	var v struct {
		Level slog.Level `yaml:"logLevel"`
		Port  uint16     `yaml:"port"`
		VNI   uint32     `yaml:"vni"`
		MTU   int        `yaml:"mtu"`
		Guard bool       `yaml:"sourceGuard"`
	}
	if err := Decode([]byte("logLevel: debug\nport: 4789"), &v); err != nil || v.Port != 4789 || v.Level != slog.LevelDebug {
		t.Fatalf("%+v, %v", v, err)
	}
	want := `line 1: logLevel: "loud" is none of debug, info, warn and error
line 2: port: "65536" is not a whole number from 0 to 65535
line 3: vni: "-1" is not a whole number from 0 to 4294967295
line 4: mtu: "big" is not a whole number
line 5: sourceGuard: "maybe" is neither true nor false`
	if err := Decode([]byte("logLevel: loud\nport: 65536\nvni: -1\nmtu: big\nsourceGuard: maybe"), &v); err == nil || err.Error() != want {
		t.Errorf("%v\nwant\n%s", err, want)
	}
	if err := Decode([]byte("# nothing yet\n"), &v); err != io.EOF {
		t.Errorf("of an empty file: %v, want EOF", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err == nil {
			_ = s.Validate(&control.Node{Name: "n1", Underlay: []netip.Addr{netip.MustParseAddr("192.168.1.11")}})
		}
	})
}

// A file as Kubernetes mounts it: a link that is swapped.
func TestWatchAppliesEachNewContentOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "peers.yaml")
	write := func(text string) {
		t.Helper()
		file, err := os.CreateTemp(dir, "content")
		if err != nil {
			t.Fatal(err)
		}
		_, err = file.WriteString(text)
		err = errors.Join(err, file.Close(), os.Symlink(file.Name(), path+".new"), os.Rename(path+".new", path))
		if err != nil {
			t.Fatal(err)
		}
	}
	write(good)
	file := &File{Path: path}
	if s, err := file.Load(); err != nil || len(s.Peers) != 2 {
		t.Fatal(s, err)
	}
	applied := make(chan control.State, 10)
	hup := make(chan os.Signal, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		file.Watch(ctx, hup, slog.New(slog.DiscardHandler), func(s control.State) error {
			applied <- s
			return nil
		})
	}()
	next := func() control.State {
		t.Helper()
		select {
		case s := <-applied:
			return s
		case <-time.After(10 * time.Second):
			t.Fatal("nothing was applied")
			panic("unreachable")
		}
	}
	hup <- os.Interrupt // what Load read is applied again only on demand
	if s := next(); len(s.Peers) != 2 {
		t.Errorf("on a signal: %d peers, want 2", len(s.Peers))
	}
	write("peers: [{name")
	write(strings.Replace(good, "n3", "n4", 1))
	hup <- os.Interrupt
	if s := next(); s.Peers[1].Name != "n4" {
		t.Errorf("after a change: %+v", s.Peers)
	}
	cancel()
	<-done
	if len(applied) != 0 {
		t.Errorf("applied again without a change: %+v", <-applied)
	}
}
