package main

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"tapyard/switch/port"
	"tapyard/switch/selftest"
)

// What one start has found out the next one knows, unless another program or another boot did, or the file is damaged.
func TestProvenIsKept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, proofsFile)
	a := &agent{cfg: &config{RunDir: dir}, proven: readProven(dir, false), log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	empty := a.proven
	if empty.Results != nil || empty.Engines != nil || empty.By == "" {
		t.Fatalf("known without a file: %+v", empty)
	}
	a.proven.Results = []selftest.Result{{Name: "tso4", Proof: "a stream", Err: "a byte changed", Caps: port.CapTSO4}}
	a.proven.Engines = &port.Trial{ReadWrite: 562, IOUring: 479}
	a.keepProven()
	if got := readProven(dir, false); !reflect.DeepEqual(got, a.proven) {
		t.Errorf("read %+v, kept %+v", got, a.proven)
	}
	next := &agent{cfg: a.cfg, proven: readProven(dir, false)} // without a logger: it makes no trial and no self-test
	if trial, err := next.tryEngines(); err != nil || trial != *a.proven.Engines {
		t.Errorf("engines: %+v, %v", trial, err)
	}
	if results := next.proofs(); !reflect.DeepEqual(results, a.proven.Results) {
		t.Errorf("proofs: %+v", results)
	}
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{strings.Replace(string(kept), a.proven.By, "another boot", 1), string(kept[:len(kept)/2]), "{}", ""} {
		if err := os.WriteFile(path, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := readProven(dir, false); !reflect.DeepEqual(got, empty) {
			t.Errorf("from %q: %+v", b, got)
		}
	}
	other := strings.Replace(string(kept), "tapyard.test", "an older build", 1)
	if err := os.WriteFile(path, []byte(other), 0o600); err != nil || other == string(kept) {
		t.Fatal(err)
	}
	if got := readProven(dir, false); !reflect.DeepEqual(got, empty) {
		t.Errorf("of another build, while nothing waits: %+v", got)
	}
	a.proven.borrowed = true
	if got := readProven(dir, true); !reflect.DeepEqual(got, a.proven) {
		t.Errorf("of another build, while frames wait: %+v", got)
	}
}
