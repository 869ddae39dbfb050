package nstest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupDir is where the machine's hierarchies of cgroups are mounted, and that of service managers.
const cgroupDir = "/run/nstest-cgroup"

// hierarchy is one of cgroups.
type hierarchy struct {
	name         string // its controllers, "systemd" or "unified"
	own          string // the cgroup of this process
	fstype, data string // for mount(2)
}

// managers is the hierarchy in which service managers keep their units.
var managers = hierarchy{name: "systemd", fstype: "cgroup", data: "none,name=systemd"}

func (h hierarchy) dir() string { return filepath.Join(cgroupDir, h.name) }

// ownCgroups reads where this process is (cgroups(7), /proc/PID/cgroup).
func ownCgroups() (hs []hierarchy, err error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		words := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(words) != 3 {
			return nil, fmt.Errorf("/proc/self/cgroup: %q", line)
		}
		h := hierarchy{words[1], words[2], "cgroup", words[1]}
		if name, named := strings.CutPrefix(h.name, "name="); named {
			h.name, h.data = name, "none,"+h.data
		}
		if h.name == "" {
			h.name, h.fstype = "unified", "cgroup2"
		}
		hs = append(hs, h)
	}
	return hs, nil
}

// mountCgroup mounts it for all service managers of this process.
func mountCgroup(h hierarchy) error {
	if err := os.MkdirAll(cgroupDir, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(h.dir(), 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) { // it is
			return nil
		}
		return err
	}
	if err := unix.Mount("cgroup", h.dir(), h.fstype, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.data); err != nil {
		return errors.Join(fmt.Errorf("mount the cgroup hierarchy %s: %w", h.name, err), os.Remove(h.dir()))
	}
	return nil
}

// makeCgroups makes what the process that will be PID 1 can't make inside: a cgroup in each hierarchy, below this process's own,
// so that nothing of what is done there is beside the machine's.
func makeCgroups() (cgroups []string, err error) {
	if err := mountCgroup(managers); err != nil { // the machine may have none
		return nil, err
	}
	hierarchies, err := ownCgroups()
	if err != nil {
		return nil, err
	}
	for _, h := range hierarchies {
		if err := mountCgroup(h); err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp(filepath.Join(h.dir(), h.own), "tapyard-nstest-")
		if err != nil {
			return nil, err
		}
		cgroups = append(cgroups, dir)
		if err := fillCgroup(filepath.Join(h.dir(), h.own), dir); err != nil {
			return nil, err
		}
	}
	return cgroups, nil
}

// nodeShares is the weight of all that runs in a cgroup beside one of the machine's sessions, which has 1,024: beside a
// machine's load, a node of a test shall be no slower than its few services would be each for itself.
const nodeShares = "4096"

// fillCgroup writes what a new cgroup of version 1 needs, if it is of a controller that has that file.
func fillCgroup(parent, dir string) error {
	files := map[string]string{"cpu.shares": nodeShares}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} { // without which no process may enter
		text, err := os.ReadFile(filepath.Join(parent, name))
		if err == nil {
			files[name] = string(text)
		}
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroup removes the cgroup and those in it, whose processes have just been killed.
func removeCgroup(dir string) (err error) {
	for range 100 {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				defer os.Remove(path) // the innermost first need several rounds
			}
			return nil
		})
		if err = os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}
