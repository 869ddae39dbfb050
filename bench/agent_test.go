package bench

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// buildTapyard builds the real programs beside each other and returns the path of tapyard.
func buildTapyard(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir, "./cmd/...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build tapyard: %v\n%s", err, out)
	}
	return filepath.Join(dir, "tapyard")
}

// The switch itself, with pods attached by its plugin, must account for every frame of a burst.
func TestBurstThroughAgentBalances(t *testing.T) {
	ownTempDir(t)
	s, err := prepare(Config{Executable: buildTapyard(t), Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err) // its ledger didn't balance
		}
	}()
	if err := s.start(t.Context(), []starter{startAgent, startRaw}); err != nil {
		t.Fatal(err)
	}
	for _, sub := range s.subjects {
		a, err := s.offer(t.Context(), sub, scenario{name: "burst"}, 300*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %+v", sub.name(), *a)
		if err := a.check(); err != nil {
			t.Errorf("%s: %v", sub.name(), err)
		}
		if _, err := s.stream(t.Context(), sub, 300*time.Millisecond); err != nil {
			t.Errorf("TCP through %s: %v", sub.name(), err)
		}
	}
	rows, err := s.interleave(t.Context(), "pps.test", ppsMetrics, s.briefly)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pps.test.raw", "pps.test.rate.raw", "pps.test.frames_per_second.tapyard"} {
		if i := slices.IndexFunc(rows, func(r Row) bool { return r.Name == name }); i < 0 || rows[i].Value <= 0 {
			t.Errorf("no row %s, or it is nothing: %+v", name, rows)
		}
	}
}

// briefly is a run of the pps benchmark too short to mean anything.
func (s *session) briefly(ctx context.Context, sub subject) (values, error) {
	a, err := s.offer(ctx, sub, scenario{name: "paced", rate: 10_000}, 100*time.Millisecond)
	if err != nil {
		return nil, err
	}
	return a.figures(0), a.check()
}
