package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// standIn describes a lab whose program is bash, and starts processes with the arguments of its agent n1.
func standIn(t *testing.T) (ours *Lab, start func(id string) *exec.Cmd) {
	bash, err := labExecutable("/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// bash takes "agent" for a script in its folder; read is its own, so that it stays the only process.
	if err := os.WriteFile(filepath.Join(dir, "agent"), []byte("read line"), 0o600); err != nil {
		t.Fatal(err)
	}
	start = func(id string) *exec.Cmd {
		cmd := exec.Command(bash, "agent", "--config", labConfigFile("n1"))
		cmd.Dir, cmd.Env = dir, append(os.Environ(), labEnv+"="+id)
		in, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); cmd.Wait() })
		return cmd
	}
	return &Lab{ID: "ours", Exe: bash, Nodes: []LabNode{{Name: "n1"}}}, start
}

// TestLabSeesProcessInExec: a process that was just started has no arguments in /proc yet. 'lab up' took its
// supervisor for dead then, now and then on a busy machine.
func TestLabSeesProcessInExec(t *testing.T) {
	ours, start := standIn(t)
	for range 300 {
		cmd := start("ours")
		if !ours.owns(cmd.Process.Pid, "n1") {
			t.Fatalf("process %d is taken for a stranger", cmd.Process.Pid)
		}
		cmd.Process.Kill()
	}
}

// TestLabKillsOnlyItsOwn has a stand-in run with a lab's arguments, once with its ID and once with another's.
func TestLabKillsOnlyItsOwn(t *testing.T) {
	ours, start := standIn(t)
	mine, theirs := start("ours"), start("another")
	if pids, err := ours.pidsOf("n1"); err != nil || !slices.Equal(pids, []int{mine.Process.Pid}) {
		t.Errorf("the lab's process is %v (%v), want %d", pids, err, mine.Process.Pid)
	}
	go mine.Wait() // or it would stay a zombie
	if err := ours.stopProcesses("n1"); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(theirs.Process.Pid, 0); err != nil {
		t.Errorf("another's process is gone: %v", err)
	}
	if pids, err := ours.pidsOf("n1"); len(pids) != 0 || err != nil {
		t.Errorf("left: %v (%v)", pids, err)
	}
}
