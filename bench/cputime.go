package bench

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
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
	switching time.Duration // by the processes that forward; 0 where the kernel does
	softirq   time.Duration // by the kernel's threads for what its interrupts left, ksoftirqd
	machine   time.Duration // by everything
}

// readCPU reads all clocks; pids are the processes that forward.
func readCPU(pids ...int) (u cpuUse, err error) {
	for _, pid := range pids {
		t, err := processCPU(pid)
		if err != nil {
			return cpuUse{}, err
		}
		u.switching += t
	}
	for _, pid := range softirqThreads() {
		t, err := processCPU(pid)
		if err != nil {
			return cpuUse{}, err
		}
		u.softirq += t
	}
	u.machine, err = machineBusy()
	return u, err
}

// softirqThreads finds the kernel's threads ksoftirqd/N, which are there as long as their CPU; inside a container
// nobody sees them.
var softirqThreads = sync.OnceValue(func() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		comm, _ := os.ReadFile(name) // of a process that has ended meanwhile: nothing
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil && strings.HasPrefix(string(comm), "ksoftirqd/") {
			pids = append(pids, pid)
		}
	}
	return pids
})

func (u cpuUse) since(before cpuUse) cpuUse {
	return cpuUse{switching: u.switching - before.switching, softirq: u.softirq - before.softirq, machine: u.machine - before.machine}
}

// machineSeconds is the machine's CPU time, ends being what the processes used that made and swallowed the traffic.
// Where strangers took part of it (see disturbing) it is the time of all that took part in the run: both ends, the
// switch, ksoftirqd; that leaves out interrupts, which cost 1 to 2 % of a run.
func (u cpuUse) machineSeconds(ends, took time.Duration) float64 {
	if others := u.others(ends); disturbing(others, took) {
		return (u.machine - others).Seconds()
	}
	return u.machine.Seconds()
}

// others is the CPU time that neither the switch nor the ends have used, nor the kernel for them: interrupts, and
// strangers.
func (u cpuUse) others(ends time.Duration) time.Duration {
	return u.machine - u.switching - u.softirq - ends
}

// disturbing says that this is more than a tenth of the machine's CPU time.
func disturbing(others, took time.Duration) bool {
	return others > took*time.Duration(runtime.NumCPU())/10
}

// switchSeconds is not a number where no process forwards.
func (u cpuUse) switchSeconds() float64 {
	if u.switching == 0 {
		return math.NaN()
	}
	return u.switching.Seconds()
}
