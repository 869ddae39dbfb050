package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tapyard/switch/attach"
)

// audit runs 'tapyard ipam audit' as an operator does; output is what both streams got.
func (n *installed) audit(args ...string) (output string, err error) {
	n.t.Helper()
	out, err := n.node.Command(filepath.Join(n.dir, "tapyard"), append([]string{"ipam", "audit", "--config", n.config}, args...)...).CombinedOutput()
	return string(out), err
}

// audited asserts that the audit's exit code says whether something is wrong, and that it says every part.
func (n *installed) audited(args []string, wrong bool, parts ...string) string {
	n.t.Helper()
	out, err := n.audit(args...)
	if (err != nil) != wrong {
		n.t.Errorf("audit %v: error %v, want one: %t\n%s", args, err, wrong, out)
	}
	for _, part := range parts {
		if !strings.Contains(out, part) {
			n.t.Errorf("audit %v lacks %q:\n%s", args, part, out)
		}
	}
	return out
}

// What an operator sees of pods' addresses, with an agent and without, and how a damaged database comes back.
func TestAuditAndRebuild(t *testing.T) {
	n := install(t)
	stop := n.start()
	n.cni("ADD", "c1")
	n.audited(nil, false, "10.244.1.3/24", "fd00:10:244:1::3/64", "default/web", "yes     eth0    "+n.pod.Path()+"  yes")
	var rows []attach.Audited
	if err := json.Unmarshal([]byte(n.audited([]string{"-o", "json"}, false)), &rows); err != nil || len(rows) != 2 || rows[0].Published == nil || !*rows[0].Published {
		t.Errorf("as JSON: %+v, %v", rows, err)
	}
	flush := func() {
		if out, err := n.pod.Command("ip", "address", "flush", "dev", "eth0").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	flush()
	n.audited(nil, true, "WRONG: eth0 lacks the address 10.244.1.3/24", "--repair", "are wrong")
	n.audited([]string{"--repair"}, false, "repaired: eth0 lacks the address")
	n.audited([]string{"--rebuild"}, true, "another agent holds it")
	stop(syscall.SIGTERM)

	n.audited(nil, false, "10.244.1.3/24", "unknown")
	flush()
	n.audited(nil, true, "WRONG: eth0 lacks the address 10.244.1.3/24")
	n.audited([]string{"--repair"}, false, "repaired: eth0 lacks the address")
	n.audited([]string{"--rebuild"}, true, "is not damaged")

	path := filepath.Join(n.stateDir, "tapyard.db")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[20] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := n.node.Command(filepath.Join(n.dir, "tapyard"), "agent", "--config", n.config).CombinedOutput()
	way := "tapyard ipam audit --rebuild --state-dir " + n.stateDir
	if err == nil || !strings.Contains(string(out), path+", are damaged: page 0") || !strings.Contains(string(out), way) {
		t.Fatalf("the agent starts: %v\n%s", err, out)
	}
	n.audited(nil, true, "are damaged")
	n.audited([]string{"--rebuild"}, false, "recorded default/web [10.244.1.3 fd00:10:244:1::3]", path+".damaged-", "1 pods recorded")
	stop = n.start()
	n.audited(nil, false, "10.244.1.3/24", "yes     eth0    "+n.pod.Path()+"  yes")
	n.cni("DEL", "c1")
	n.audited(nil, false, "ADDRESS")
	stop(syscall.SIGTERM)
}
