package attach

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"tapyard/bench/nstest"
)

// A record that this version can't read may be that of a pod with a device; one whose namespace is gone isn't.
func TestUninstallNamesWhatItWouldCutOff(t *testing.T) {
	n, ns, gone := newNode(t, nil), nstest.New(t), nstest.New(t)
	a := n.add(t, ns, "c1")
	n.add(t, gone, "c2")
	if err := n.store.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte("c3/eth0"), []byte("{")) }); err != nil {
		t.Fatal(err)
	}
	dir := n.start.StateDir
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	defer n.open(t) // for newNode's cleanup
	if out, err := exec.Command("ip", "netns", "delete", gone.Name()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	var removed []string
	cfg := UninstallConfig{StateDir: dir, Removed: func(what string) { removed = append(removed, what) }}
	err := Uninstall(t.Context(), cfg)
	var attached StillAttached
	if !errors.As(err, &attached) || len(attached) != 2 || !strings.Contains(attached[0], a.Name) || !strings.Contains(attached[1], "c3/eth0") || len(removed) > 0 {
		t.Fatalf("Uninstall: %v; removed %v", err, removed)
	}

	cfg.Pods = true
	if err := Uninstall(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if len(removed) != 2 || !strings.Contains(removed[0], a.Name) || !strings.Contains(removed[1], "tapyard.db") {
		t.Errorf("removed %v, want c1's device and the database", removed)
	}
	if _, err := os.Stat(filepath.Join(dir, "tapyard.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("database: %v", err)
	}
	if links := linksOf(t, ns); len(links) != 1 {
		t.Errorf("devices in the pod: %v", links)
	}
}
