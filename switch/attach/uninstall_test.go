package attach

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tapyard/bench/nstest"
)

// A pod that has its device is in the way, one whose namespace is gone isn't. A damaged database may hide either.
func TestUninstallNamesWhatItWouldCutOff(t *testing.T) {
	n, ns, gone := newNode(t, nil), nstest.New(t), nstest.New(t)
	a := n.add(t, ns, "c1")
	n.add(t, gone, "c2")
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
	path := filepath.Join(dir, database)
	whole := used(t, path)
	if err := os.WriteFile(path, whole[:5000], 0o600); err != nil {
		t.Fatal(err)
	}
	err := Uninstall(t.Context(), cfg)
	if damaged := (*DamagedError)(nil); !errors.As(err, &damaged) || len(removed) > 0 {
		t.Fatalf("Uninstall: %v; removed %v", err, removed)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	err = Uninstall(t.Context(), cfg)
	var attached StillAttached
	if !errors.As(err, &attached) || len(attached) != 1 || !strings.Contains(attached[0], a.Name) || len(removed) > 0 {
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
