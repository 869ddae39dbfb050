package bench

import (
	"os"
	"slices"
	"testing"

	"tapyard/bench/nstest"
)

// Both plugins attach and detach every pod, one at a time and all at once, and leave nothing behind.
func TestAttaching(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes 10 s")
	}
	nstest.CNIPlugins(t)
	ownTempDir(t)
	namespaces := func() int {
		entries, err := os.ReadDir(netnsDir)
		must(t, err)
		return len(entries)
	}
	before := namespaces()
	s, err := prepare(Config{Repeat: 1, Peers: []string{cniBridgeName}, Executable: buildTapyard(t), Progress: t.Output()})
	must(t, err)
	defer func() { must(t, s.close()) }()
	rows, err := s.attaching(t.Context(), "dual", cniFamilies[1].subnets)
	must(t, err)
	for _, name := range []string{"cni.dual.one.bridge", "cni.dual.by32.bridge", "cni.dual.one.add_and_del.tapyard", "cni.dual.check"} {
		if i := slices.IndexFunc(rows, func(r Row) bool { return r.Name == name }); i < 0 || rows[i].Value <= 0 {
			t.Errorf("no row %s, or it is nothing: %+v", name, rows)
		}
	}
	if after := namespaces(); after != before {
		t.Errorf("%d network namespaces, %d before", after, before)
	}
}
