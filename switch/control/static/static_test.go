package static

import (
	"context"
	"errors"
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
	for text, part := range map[string]string{
		"peers: [{name: n2, underlay: 192.168.1.300}]": "192.168.1.300",
		"peers: [{name: n2, podSubnet: [10.0.0.0/8]}]": "podSubnet",
		"":                                       "empty",
		"peers: []\n---\npeers: []":              "document",
		"clusterCIDRs: [10.244.0.0]":             "10.244.0.0",
		"peers: [{name: n2, mac: 02-00}]":        "02-00",
		"peers:\n- name: n2\n  underlay: {a: 1}": "line 3",
		"peers: [{name: n2, underlay: [1.2.3.4, nonsense]": "line",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: error %v, want one that names %q", text, err, part)
		}
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
