// Package static is the source of State that reads a file, peers.yaml, and watches it for changes.
package static

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"go.yaml.in/yaml/v3"

	"tapyard/switch/control"
	"tapyard/switch/wire"
)

// file is peers.yaml.
type file struct {
	ClusterCIDRs []netip.Prefix `yaml:"clusterCIDRs"`
	Peers        []peer         `yaml:"peers"`
}

type peer struct {
	Name       string         `yaml:"name"`
	Underlay   addresses      `yaml:"underlay"`
	PodSubnets []netip.Prefix `yaml:"podSubnets"`
	MAC        wire.MAC       `yaml:"mac"`
}

// addresses is one address or a list.
type addresses []netip.Addr

// UnmarshalYAML implements yaml.Unmarshaler.
func (a *addresses) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*a = make(addresses, 1)
		return n.Decode(&(*a)[0])
	}
	return n.Decode((*[]netip.Addr)(a))
}

// Parse reads the contents of a peers.yaml.
func Parse(b []byte) (control.State, error) {
	var f file
	switch err := Decode(b, &f); {
	case errors.Is(err, io.EOF): // what a full disk leaves; a node without peers says so
		return control.State{}, errors.New("the file is empty; a node without peers writes 'peers: []'")
	case err != nil:
		return control.State{}, err
	}
	s := control.State{ClusterCIDRs: f.ClusterCIDRs}
	for _, p := range f.Peers {
		s.Peers = append(s.Peers, control.Peer{Name: p.Name, Underlay: p.Underlay, PodSubnets: p.PodSubnets, MAC: p.MAC})
	}
	return s, nil
}

// File is a peers.yaml on disk. Load it once, then Watch it; both belong to one goroutine at a time.
type File struct {
	Path string

	last []byte // what was loaded last, applied or refused
}

// Load reads the file.
func (f *File) Load() (control.State, error) {
	b, err := os.ReadFile(f.Path)
	if err != nil {
		return control.State{}, fmt.Errorf("peers file: %w", err)
	}
	f.last = b
	s, err := Parse(b)
	if err != nil {
		return control.State{}, fmt.Errorf("peers file %s: %w", f.Path, err)
	}
	return s, nil
}

// pollInterval is how soon a change is noticed; another one later it is applied. Reading a file of some
// kilobytes a second costs nothing that shows, and unlike a watch it sees through the symbolic links that
// Kubernetes swaps under a mounted ConfigMap.
const pollInterval = time.Second

// Watch calls apply with each content of the file that differs from the one before, beginning with what
// Load read, until ctx ends. A file that can't be read or parsed, or that apply refuses, is reported once,
// and what was applied before stays in force. now, if it receives, has the content applied again.
func (f *File) Watch(ctx context.Context, now <-chan os.Signal, log *slog.Logger, apply func(control.State) error) {
	w := watcher{File: f, log: log, apply: apply, seen: f.last, lost: f.last == nil} // Load has said so
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-now:
			w.last = nil
			w.poll() // whoever asks for it has finished writing
		}
		w.poll()
	}
}

type watcher struct {
	*File
	log   *slog.Logger
	apply func(control.State) error
	seen  []byte // by the last poll
	lost  bool   // the last poll could not read the file
}

// poll loads a new content when two polls have read the same, so that a file that is just being written
// is left alone.
func (w *watcher) poll() {
	b, err := os.ReadFile(w.Path)
	if err != nil {
		if !w.lost {
			w.log.Error("can't read the peers file; the last good state stays in force", "path", w.Path, "error", err)
		}
		w.lost = true
		return
	}
	w.lost = false
	settled := bytes.Equal(b, w.seen)
	w.seen = b
	if settled && !bytes.Equal(b, w.last) {
		w.last = b
		w.load(b)
	}
}

func (w *watcher) load(b []byte) {
	s, err := Parse(b)
	if err == nil {
		err = w.apply(s)
	}
	if err != nil {
		w.log.Error("peers file refused as a whole; the last good state stays in force", "path", w.Path, "error", err)
		return
	}
	w.log.Info("peers file applied", "path", w.Path, "peers", len(s.Peers))
}
