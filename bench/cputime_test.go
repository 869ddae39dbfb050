package bench

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// getrusage is the kernel's other account of the same time.
func TestProcessCPUAgreesWithRusage(t *testing.T) {
	before, usage := readBoth(t)
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
	}
	after, usageAfter := readBoth(t)
	got, want := after-before, usageAfter-usage
	if diff := (got - want).Abs(); diff > 20*time.Millisecond || got <= 0 { // rusage counts in ticks of up to 10 ms
		t.Errorf("the process used %v, getrusage says %v", got, want)
	}
	if _, err := processCPU(1<<22 + 1); err == nil { // above the kernel's PID_MAX_LIMIT
		t.Error("a process that doesn't exist has used time")
	}
}

func readBoth(t *testing.T) (clock, usage time.Duration) {
	t.Helper()
	clock, err := processCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return clock, time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func TestIdleTime(t *testing.T) {
	got, err := idleTime("cpu  1 2 3 400 50 6 7 8 9 10")
	if err != nil || got != 4580*time.Millisecond {
		t.Errorf("idle %v (%v), want 400+50+8 ticks of 10 ms", got, err)
	}
	for _, line := range []string{"", "cpu 1 2 3", "cpu 1 2 3 x 5 6 7 8"} {
		if _, err := idleTime(line); err == nil {
			t.Errorf("%q was read", line)
		}
	}
}
