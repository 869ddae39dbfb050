package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// labEnv carries the lab's random ID in the environment of its processes. Together with the program and
// its arguments it tells the lab's processes from all others, without a list of pids that a killed
// supervisor would leave wrong.
const labEnv = "TAPYARD_LAB"

const labSupervisor = "supervisor"

// LabProcess is a live process of the lab: "supervisor", or an agent, called as its node is.
type LabProcess struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
}

// Processes returns the live processes of the lab.
func (l *Lab) Processes() ([]LabProcess, error) {
	var found []LabProcess
	for _, name := range append([]string{labSupervisor}, l.agents()...) {
		pids, err := l.pidsOf(name)
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			found = append(found, LabProcess{name, pid})
		}
	}
	return found, nil
}

// argv is how the named process of the lab was started.
func (l *Lab) argv(name string) []string {
	if name == labSupervisor {
		return []string{l.Exe, "lab", labSuperviseVerb}
	}
	return []string{l.Exe, "agent", "--config", labConfigFile(name)}
}

// environ is the environment of the lab's processes.
func (l *Lab) environ() []string { return append(os.Environ(), labEnv+"="+l.ID) }

// pidsOf returns who runs as the named process of this lab: nobody or one, unless a supervisor was killed
// at the wrong moment.
func (l *Lab) pidsOf(name string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && l.owns(pid, name) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// owns says whether the process is the named one of this lab.
func (l *Lab) owns(pid int, name string) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	if !l.identified(proc, name) {
		return false
	}
	if name == labSupervisor { // its children look like it between fork and exec, but don't lead its session
		if sid, err := unix.Getsid(pid); err != nil || sid != pid {
			return false
		}
	}
	exe, err := os.Readlink(filepath.Join(proc, "exe"))
	return err == nil && strings.TrimSuffix(exe, " (deleted)") == l.Exe // deleted: built anew meanwhile
}

// labExecPause times labExecTries is how long a process may be in the middle of execve(2), which begins by
// dropping the old arguments and environment and writes the new ones at last. On a busy machine the process
// may have to wait for a CPU in between, some milliseconds.
const (
	labExecPause = time.Millisecond
	labExecTries = 100
)

// identified says whether the process has the arguments and the environment of the named one.
func (l *Lab) identified(proc, name string) bool {
	for range labExecTries {
		argv := labReadList(filepath.Join(proc, "cmdline"))
		if len(argv) > 0 && !slices.Equal(argv, l.argv(name)) {
			return false
		}
		env := labReadList(filepath.Join(proc, "environ"))
		if len(argv) > 0 && len(env) > 0 {
			return slices.Contains(env, labEnv+"="+l.ID)
		}
		if _, err := os.Readlink(filepath.Join(proc, "exe")); err != nil {
			return false // a kernel thread, or dead
		}
		time.Sleep(labExecPause)
	}
	return false
}

// labReadList reads a list of NUL-terminated strings; what can't be read is empty.
func labReadList(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// labProc is a process of the lab that isn't our child. Its descriptor names it whatever becomes of its
// pid, so that no signal ever reaches another process.
type labProc struct{ pidfd int }

// openProcess returns the named process, or nil when it doesn't run.
func (l *Lab) openProcess(name string) (*labProc, error) {
	pids, err := l.pidsOf(name)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err == unix.ESRCH {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open process %d: %w", pid, err)
		}
		if l.owns(pid, name) { // still, now that the pid can't be given to another
			return &labProc{fd}, nil
		}
		unix.Close(fd)
	}
	return nil, nil
}

func (p *labProc) close() error { return unix.Close(p.pidfd) }

// signal tolerates that the process has ended.
func (p *labProc) signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("send %v: %w", sig, err)
	}
	return nil
}

// ended waits up to limit for the process to end.
func (p *labProc) ended(limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// stopProcesses ends all that run under the name, gently if that works within the patience of a process.
func (l *Lab) stopProcesses(name string) error {
	for {
		p, err := l.openProcess(name)
		if p == nil || err != nil {
			return err
		}
		err = p.stop()
		p.close()
		if err != nil {
			return fmt.Errorf("stop %s: %w", name, err)
		}
	}
}

func (p *labProc) stop() error {
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	if p.ended(patience) {
		return nil
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	if !p.ended(patience) {
		return errors.New("it doesn't even end when killed; is it stuck in the kernel?")
	}
	return nil
}

// labLastLine returns the last line that an agent wrote, which says why it ended.
func labLastLine(agent string) string {
	text, err := os.ReadFile(labLogFile(agent))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}
