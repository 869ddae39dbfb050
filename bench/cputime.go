package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processCPU returns the CPU time that a process and all its threads, ended ones too, have used, in
// nanoseconds as the scheduler counts it: utime and stime of /proc have a resolution of 10 ms only.
func processCPU(pid int) (time.Duration, error) {
	// clock_getcpuclockid(3): the clock of a process is its complemented pid and the kind of the clock.
	const cpuClockSched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|cpuClockSched, &ts); err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// machineBusy returns how long the machine's CPUs together were not idle, in steps of 10 ms. Time that a
// hypervisor stole is not counted: nobody here used it.
func machineBusy() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(line)
	// cpu user nice system idle iowait irq softirq steal; user includes guests.
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	const tick = time.Second / 100 // USER_HZ is 100 on every architecture that Go runs on
	var busy time.Duration
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		busy += time.Duration(n) * tick
	}
	return busy, nil
}

// cpuUse is CPU time used between two readings.
type cpuUse struct {
	process time.Duration // by the process that forwards
	machine time.Duration // by everything
}

// readCPU reads both clocks; pid 0 is a machine on which nobody forwards.
func readCPU(pid int) (u cpuUse, err error) {
	if pid != 0 {
		if u.process, err = processCPU(pid); err != nil {
			return cpuUse{}, err
		}
	}
	u.machine, err = machineBusy()
	return u, err
}

func (u cpuUse) since(before cpuUse) cpuUse {
	return cpuUse{process: u.process - before.process, machine: u.machine - before.machine}
}
