package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"runtime"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// Read the CNI specification 1.1, section 2, first.

// outputDelay is how long a plugin that has ended is read from: what it has started may have its standard output still, and
// would keep the attachment locked.
const outputDelay = time.Second

// execPlugin runs a plugin with its configuration on standard input and returns what it printed; the error is the
// *types.Error that it printed, if it did. The plugin is killed with this process: one that went on would give out
// addresses behind the next agent's back, which has undone the ADD by then.
func execPlugin(ctx context.Context, path string, conf []byte, env []string) ([]byte, error) {
	runtime.LockOSThread() // it is this thread's end that kills it (prctl(2), PR_SET_PDEATHSIG)
	defer runtime.UnlockOSThread()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(conf), &stdout, &stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.WaitDelay = outputDelay
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	var told types.Error
	if json.Unmarshal(stdout.Bytes(), &told) == nil && told.Msg != "" {
		return nil, &told
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return nil, fmt.Errorf("%w, having said %.200q", err, stdout.String()+stderr.String())
}
