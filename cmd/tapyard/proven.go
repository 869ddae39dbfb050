package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

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
}

// readProven returns what the last agent has found out, or nothing if that was another program or before a boot.
func readProven(runDir string) (p proven) {
	by := provenBy()
	if b, err := os.ReadFile(filepath.Join(runDir, proofsFile)); err != nil || json.Unmarshal(b, &p) != nil || p.By != by {
		return proven{By: by}
	}
	return p
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
