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

// machineBusy returns how long the machine's CPUs together were not idle since it started. The kernel
// knows idle time to the microsecond, whereas it samples busy time at its ticks, which coincide with the
// sleeps of a paced generator; so busy is what is left. Time that a hypervisor stole nobody here has used.
func machineBusy() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("read the time since boot: %w", err)
	}
	total, each, _ := strings.Cut(string(stat), "\n")
	idle, err := idleTime(total)
	if err != nil {
		return 0, fmt.Errorf("/proc/stat: %w", err)
	}
	cpus := 0
	for line := range strings.Lines(each) {
		if strings.HasPrefix(line, "cpu") {
			cpus++
		}
	}
	return time.Duration(cpus)*time.Duration(now.Nano()) - idle, nil
}

// idleTime reads idle, iowait and steal of a line
// "cpu user nice system idle iowait irq softirq steal guest guest_nice".
func idleTime(line string) (idle time.Duration, err error) {
	const tick = time.Second / 100 // USER_HZ is 100 on every architecture that Go runs on
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0, fmt.Errorf("%d fields in %q, want at least 9", len(fields), line)
	}
	for _, i := range []int{4, 5, 8} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		idle += time.Duration(n) * tick
	}
	return idle, nil
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
