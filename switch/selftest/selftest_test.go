package selftest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/frame"
	"tapyard/switch/port"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// The kernel that these tests run on is one where everything works.
func TestRun(t *testing.T) {
	results, err := Run()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		t.Logf("%-12s %8v  %s", r.Name, r.Took, r.Proof)
		if !r.OK() {
			t.Errorf("%s: %s", r.Name, r.Err)
		}
	}
	if got := Failed(results); got != 0 {
		t.Errorf("failed %b", got)
	}
}

// Where the tests can't be made, that is an error; the agent goes on.
func TestRunWithoutPrivilege(t *testing.T) {
	port.OnThread(func() { // capabilities are a thread's
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Error(err)
		}
		if _, err := run(); !errors.Is(err, unix.EPERM) {
			t.Errorf("%v, want %v", err, unix.EPERM)
		}
	})
}

// The process stays in its network namespace, whatever thread the caller is on.
func TestRunLeavesTheProcessWhereItWas(t *testing.T) {
	where := func() string {
		s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getpid())) // of the first thread
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := where()
	for range 20 {
		if _, err := Run(); err != nil {
			t.Fatal(err)
		}
		if after := where(); after != before {
			t.Fatalf("the process was in %s and is in %s", before, after)
		}
	}
}

// What a bad kernel would do is found out, by the proofs that it concerns and no other. TCP's checksums don't help: of a
// frame whose checksum is still to be completed they are trusted.
func TestRunFindsFaults(t *testing.T) {
	last := func(f *frame.Frame) *byte { return &f.Bytes()[f.Len()-1] }
	for name, c := range map[string]struct {
		spoil  func(*frame.Frame)
		failed port.Caps
		wire   bool // fails too
	}{
		"a byte of each super-frame": {func(f *frame.Frame) {
			if f.IsSuper() {
				*last(f) ^= 1
			}
		}, port.CapTSO4 | port.CapTSO6 | port.CapUSO, true},
		"a byte of small frames with a partial checksum": {func(f *frame.Frame) {
			if f.NeedsCsum && !f.IsSuper() && f.Len() == 14+20+8+1000 {
				*last(f) ^= 1
			}
		}, port.CapCsum, false},
		"the size of segments": {func(f *frame.Frame) {
			if f.IsSuper() {
				f.GSOSize--
			}
		}, port.CapUSO, true},
	} {
		t.Run(name, func(t *testing.T) {
			done := make(chan []Result)
			go func() {
				runtime.LockOSThread()
				p, err := newTopology()
				if err != nil {
					t.Error(err)
					close(done)
					return
				}
				defer p.close()
				p.spoil = c.spoil
				done <- p.prove()
			}()
			results := <-done
			for _, r := range results {
				t.Logf("%-12s %8v %s", r.Name, r.Took, r.Err)
				if r.Name == Wire && r.OK() == c.wire {
					t.Errorf("the proof of the wire failed: %t, want %t", !r.OK(), c.wire)
				}
			}
			if got := Failed(results); got != c.failed {
				t.Errorf("failed %05b, want %05b", got, c.failed)
			}
		})
	}
}
