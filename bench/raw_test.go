package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// testSession is a session without the switch, so that what measures is tested against what does little.
func testSession(t *testing.T, starters ...starter) *session {
	t.Helper()
	ownTempDir(t)
	s, err := prepare(Config{Repeat: 1, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.start(t.Context(), starters); err != nil {
		t.Fatal(err)
	}
	if len(s.absent) > 0 {
		t.Fatalf("peers are absent: %v", s.absent)
	}
	return s
}

// ownTempDir keeps our clean-up away from a benchmark that somebody else runs on this machine.
func ownTempDir(t *testing.T) { t.Setenv("TMPDIR", t.TempDir()) }

// requireCount tries a run again that doesn't count, as a benchmark does: on a busy machine the kernel drops frames in
// places that no counter of a pod's shows. It gives up at the third.
func requireCount(t *testing.T, run func() error) {
	t.Helper()
	err := run()
	var uneven *imbalance
	for range 2 {
		if !errors.As(err, &uneven) {
			break
		}
		t.Logf("again: %v", err)
		err = run()
	}
	must(t, err)
}

// What the workers count must agree with the kernel's own counters at both devices.
func TestBurstThroughRawBalances(t *testing.T) {
	s := testSession(t, startRaw)
	for _, sc := range []scenario{{name: "burst"}, {name: "paced", rate: 20_000}, {name: "flows", flows: interleavedFlows, sizes: []int{64, 1468}}} {
		t.Run(sc.name, func(t *testing.T) {
			a, err := s.offer(t.Context(), s.subjects[0], sc, 300*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", *a)
			if err := a.check(); err != nil {
				t.Error(err)
			}
			if sc.rate > 0 && a.generator.Sent > uint64(0.3*float64(sc.rate))+1 {
				t.Errorf("%d frames in 0.3 s are more than %d a second", a.generator.Sent, sc.rate)
			}
			if a.sink.Reordered+a.sink.Foreign > 0 {
				t.Errorf("%d reordered and %d foreign frames on a quiet line", a.sink.Reordered, a.sink.Foreign)
			}
		})
	}
}

// A frame that vanishes without a trace makes the run void, and so do frames out of nowhere.
func TestLossVoidsTheRun(t *testing.T) {
	a := account{generator: generatorResult{Sent: 1000, Refused: 3}, from: dropCounters{tx: 5}, subject: 4, to: dropCounters{rx: 2}}
	a.sink = sinkResult{Received: 991, Overflowed: 1}
	if err := a.check(); err != nil {
		t.Errorf("1000 sent, 991 received, 2+4+2+1 dropped: %v", err)
	}
	a.sink.Received--
	if err := a.check(); err == nil || !strings.Contains(err.Error(), "1 unaccounted") {
		t.Errorf("a lost frame went unnoticed: %v", err)
	}
	a.sink.Received++
	a.sink.Duplicates = 1
	if err := a.check(); err == nil {
		t.Error("a duplicate went unnoticed")
	}
	a.sink.Duplicates = 0
	a.subject += maxStrays + 1
	if err := a.check(); err == nil {
		t.Error("drops of frames that nobody sent went unnoticed")
	}
}

func TestStreamThroughRaw(t *testing.T) {
	s := testSession(t, startRaw)
	v, err := s.stream(t.Context(), s.subjects[0], 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if v[0] <= 0 || v[1] <= 0 {
		t.Errorf("no throughput or no CPU time: %v", v)
	}
}

// Whatever a killed benchmark has left goes at the start of the next one, and two don't run at once.
func TestPrepareCleansUpAndLocks(t *testing.T) {
	ownTempDir(t)
	name := benchPrefix + "leftover"
	if err := makeNetns(name); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", benchPrefix)
	if err != nil {
		t.Fatal(err)
	}
	s, err := prepare(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netns.GetFromName(name); !os.IsNotExist(err) {
		t.Errorf("namespace %s is still there: %v", name, err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	if _, err := prepare(Config{}); err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("a second benchmark was let in: %v", err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), benchPrefix+"*"))
	if len(left) > 0 {
		t.Errorf("close left %v", left)
	}
}

// Without a compiler the peer is named as absent, not failed.
func TestRawAbsentWithoutCompiler(t *testing.T) {
	ownTempDir(t)
	t.Setenv("PATH", t.TempDir())
	s, err := prepare(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.start(context.Background(), []starter{startRaw}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.absent["raw"], "cc") {
		t.Errorf("absent: %v", s.absent)
	}
}
