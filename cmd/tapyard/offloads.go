package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tapyard/switch/port"
	"tapyard/switch/selftest"
)

// Names of offloadsOff that aren't offloads of TAPs.
const (
	offTrains = "trains" // several datagrams of a tunnel in one message (UDP_SEGMENT, UDP_GRO)
	offAll    = "all"
)

func offloadNames() []string { return append(port.CapNames[:], offTrains, offAll) }

// parseOffload returns the name of an offload that there is.
func parseOffload(name string) (string, error) {
	if !slices.Contains(offloadNames(), name) {
		return "", fmt.Errorf("%q: an offload is one of %s", name, strings.Join(offloadNames(), ", "))
	}
	return name, nil
}

// off says whether the configuration does without an offload.
func (c *config) off(name string) bool {
	return slices.Contains(c.OffloadsOff, name) || slices.Contains(c.OffloadsOff, offAll)
}

// offloads is what an agent does without.
type offloads struct {
	taps   port.Caps
	singly bool // the tunnel's datagrams
}

// chooseOffloads leaves off what the configuration says and what this kernel has failed to do right.
func (a *agent) chooseOffloads() {
	for i, name := range port.CapNames {
		if a.cfg.off(name) {
			a.without.taps |= 1 << i
		}
	}
	a.without.singly = a.cfg.off(offTrains)
	for _, r := range a.proofs() {
		if r.OK() {
			continue
		}
		a.log.Error("the self-test of an offload failed, so the agent does without it ('tapyard doctor offloads' repeats the test)",
			"offload", r.Name, "test", r.Proof, "error", r.Err)
		a.without.taps |= r.Caps
		a.without.singly = a.without.singly || r.Name == selftest.Tunnel
	}
}

// proofs returns the results of the self-test on this kernel by this program: they are kept in the run directory, since
// a restart after a crash has other things to do. An agent that can't make the test goes on without it.
func (a *agent) proofs() []selftest.Result {
	path := filepath.Join(a.cfg.RunDir, proofsFile)
	of := provenBy()
	if b, err := os.ReadFile(path); err == nil {
		var kept proven
		if json.Unmarshal(b, &kept) == nil && kept.By == of {
			return kept.Results
		}
	}
	start := time.Now()
	results, err := selftest.Run()
	if err != nil {
		a.log.Warn("the offloads' self-test could not be made; the agent uses what the kernel offers", "error", err)
		return nil
	}
	a.log.Info("self-test of offloads made", "tests", len(results), "took", time.Since(start).Round(time.Millisecond))
	if b, err := json.Marshal(proven{of, results}); err == nil {
		err = os.WriteFile(path, b, 0o600)
		if err != nil {
			a.log.Warn("the self-test's results can't be kept; the next start repeats it", "error", err)
		}
	}
	return results
}

// proofsFile is in the run directory.
const proofsFile = "selftest.json"

// proven is what is in proofsFile.
type proven struct {
	By      string            `json:"by"`
	Results []selftest.Result `json:"results"`
}

// provenBy tells this program on this boot of this kernel from any other.
func provenBy() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var program fs.FileInfo
	if exe, err := os.Executable(); err == nil {
		program, _ = os.Stat(exe)
	}
	if program == nil {
		return strings.TrimSpace(string(boot))
	}
	return fmt.Sprintf("%s %s %d %d", strings.TrimSpace(string(boot)), program.Name(), program.Size(), program.ModTime().UnixNano())
}
