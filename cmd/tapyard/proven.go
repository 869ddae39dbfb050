package main

import (
	"context"
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

// proofsFile is in the run directory.
const proofsFile = "selftest.json"

// proven is what an agent has found out about this kernel, for the next one: a restart after a crash has other things to
// do. It is in proofsFile.
type proven struct {
	By      string            `json:"by"`
	Results []selftest.Result `json:"results,omitempty"`
	Engines *port.Trial       `json:"engines,omitempty"`

	borrowed bool // it is another program's, whose place this one has taken
}

// readProven returns what the last agent has found out, or nothing if that was before a boot. What another program has
// found out counts for a start that frames are waiting for; see proveAgain.
func readProven(runDir string, waiting bool) (p proven) {
	by := provenBy()
	b, err := os.ReadFile(filepath.Join(runDir, proofsFile))
	if err != nil || json.Unmarshal(b, &p) != nil {
		return proven{By: by}
	}
	boot := func(by string) string { return strings.Fields(by + " ?")[0] }
	if p.borrowed = p.By != by; p.borrowed && (!waiting || boot(p.By) != boot(by)) {
		return proven{By: by}
	}
	p.By = by
	return p
}

// proveAgainAfter has what waited in the kernel go first: the self-test takes as much CPU time as there is for some 100 ms.
const proveAgainAfter = 5 * time.Second

// proveAgain makes the self-test that an upgrade had no time for. The offload that fails in it is in use, so the agent
// ends then, for a next start that does without.
func (a *agent) proveAgain(ctx context.Context) error {
	if !a.proven.borrowed {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(proveAgainAfter):
	}
	results, err := selftest.Run()
	if err != nil {
		a.log.Warn("the offloads' self-test could not be made again by this version; its predecessor's results hold", "error", err)
		return nil
	}
	failed := func(results []selftest.Result) (names []string) {
		for _, r := range results {
			if !r.OK() {
				names = append(names, r.Name)
			}
		}
		return names
	}
	before, now := failed(a.proven.Results), failed(results)
	a.proven.Results, a.proven.borrowed = results, false
	a.keepProven()
	for _, name := range now {
		if !slices.Contains(before, name) {
			return fmt.Errorf("offload %s fails the self-test of this version and is in use; ending, for the service manager to start the agent anew without it", name)
		}
	}
	a.log.Info("self-test of offloads made by this version, after its start", "tests", len(results), "failed", now)
	return nil
}

// keepProven writes what is known for the next agent.
func (a *agent) keepProven() {
	b, err := json.Marshal(a.proven)
	if err == nil {
		err = os.WriteFile(filepath.Join(a.cfg.RunDir, proofsFile), b, 0o600)
	}
	if err != nil {
		a.log.Warn("the self-test's results can't be kept; the next start repeats it", "error", err)
	}
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
