package bench

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/observe"
)

// TestDemo runs the whole demo, up to an interrupt in each of its chapters, and with an agent that dies.
func TestDemo(t *testing.T) {
	l := newLabTool(t)
	before := l.machine()
	if !testing.Short() {
		if out := l.must("demo"); !strings.HasSuffix(out, "\ndemo: ok\n") || !strings.Contains(out, "pps.samenode.burst.raw") {
			t.Errorf("the demo ended thus:\n%s", out)
		}
		l.mustBeAs(before)
	}
	for _, chapter := range []string{"[1/6]", "[2/6]", "[3/6]", "[4/6]"} {
		out, code := l.disturbDemo(chapter, func(demo *os.Process) { demo.Signal(unix.SIGINT) })
		if !strings.HasSuffix(out, "\ndemo: failed: interrupted\n") || code != 1 {
			t.Errorf("interrupted in chapter %s: exit code %d, and it ended thus:\n%s", chapter, code, out)
		}
		l.mustBeAs(before)
	}
	out, code := l.disturbDemo("[3/6]", func(*os.Process) { l.kill(l.status().pid("n3")) })
	if last := out[strings.LastIndex(strings.TrimRight(out, "\n"), "\n")+1:]; !strings.HasPrefix(last, "demo: failed: processes of the lab died") || code != 1 {
		t.Errorf("with agent n3 killed: exit code %d, and it ended thus:\n%s", code, out)
	}
	l.mustBeAs(before)
}

// disturbDemo runs the demo, and disturbs it a moment after it has written the text.
func (l *labTool) disturbDemo(text string, disturb func(demo *os.Process)) (out string, code int) {
	l.Helper()
	cmd := exec.CommandContext(l.Context(), l.exe, "demo")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	var all bytes.Buffer
	for buf := make([]byte, 4096); !strings.Contains(all.String(), text) && err == nil; {
		var n int
		n, err = pipe.Read(buf)
		all.Write(buf[:n])
	}
	time.Sleep(50 * time.Millisecond) // into the chapter; no outcome depends on how far
	disturb(cmd.Process)
	if _, err := io.Copy(&all, pipe); err != nil {
		l.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState == nil {
		l.Fatal(err)
	}
	return all.String(), cmd.ProcessState.ExitCode()
}

// TestDemoKnowsAnUnbalancedLedger doesn't take the agent's word for it.
func TestDemoKnowsAnUnbalancedLedger(t *testing.T) {
	good := observe.Account{Rx: 10, Originated: 2, Copied: 3, Split: 1, Tx: 11, Merged: 2, Consumed: 2, Drops: 1}
	lost := good
	lost.Tx--
	flying := good
	flying.InFlight = 1
	for _, c := range []struct {
		name   string
		ledger observe.Ledger
		want   bool
	}{
		{"balanced", observe.Ledger{Account: good, Wire: good}, true},
		{"a frame lost", observe.Ledger{Account: lost, Wire: good}, false},
		{"a wire frame lost", observe.Ledger{Account: good, Wire: lost}, false},
		{"in flight", observe.Ledger{Account: flying, Wire: good}, false},
		{"a buffer out", observe.Ledger{Account: good, Wire: good, PoolLive: 1}, false},
	} {
		if got := ledgerBalances(c.ledger); got != c.want {
			t.Errorf("%s: balances is %v, want %v", c.name, got, c.want)
		}
	}
}
