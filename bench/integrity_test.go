package bench

import (
	"context"
	"slices"
	"testing"
)

func TestCombine(t *testing.T) {
	var names []string
	for _, c := range combine(engines, offloads) {
		names = append(names, c.name)
		if len(c.config) != 2 || c.config["io"] == nil || c.config["offloadsOff"] == nil {
			t.Errorf("%s configures %v", c.name, c.config)
		}
	}
	if want := []string{"readwrite.offloads", "readwrite.none", "io_uring.offloads", "io_uring.none"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
}

// Each engine moves all messages unchanged on one node, and each wire between two.
func TestIntegrity(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds of traffic")
	}
	ownTempDir(t)
	s, err := prepare(Config{Executable: buildTapyard(t), Progress: t.Output(), Repeat: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	expect := func(name string, start func(ctx context.Context, config map[string]any) (integritySubject, error), choices ...choice) {
		for _, c := range combine(choices...) {
			row, err := s.integrityOf(t.Context(), name+"."+c.name, func() (integritySubject, error) { return start(t.Context(), c.config) })
			if err != nil {
				t.Fatal(err)
			}
			// Both directions in two families, by TCP and by UDP, with trains on top.
			if least := float64(2 * 2 * 2 * len(integritySizes())); !*row.Holds || row.Value < least {
				t.Errorf("%s: %v messages equal, want at least %v: %t", row.Name, row.Value, least, *row.Holds)
			}
		}
	}
	few := s.engines()
	expect("samenode", s.integrityAgent, few)
	last := len(few.values) - 1
	expect("crossnode", func(ctx context.Context, config map[string]any) (integritySubject, error) {
		return s.integrityAgents(ctx, config, false)
	}, choice{few.key, few.values[last:], few.names[last:]}, wires)
}
