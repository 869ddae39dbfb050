package bench

import (
	"context"
	"fmt"
	"os"
	"testing"

	"tapyard/bench/nstest"
)

// TestMain runs the tests in private namespaces. The benchmarks start os.Executable() as their workers, so
// the test binary answers to that command as tapyard does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == benchVerb {
		cmd := Command()
		cmd.SetArgs(os.Args[2:])
		if err := cmd.ExecuteContext(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	nstest.Main(m)
}
