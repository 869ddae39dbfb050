package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// A worker is one of the processes that make or swallow a benchmark's traffic: this binary, started again
// as `tapyard bench worker VERB SPEC`. It sets up inside the namespace that its spec names, says "ready" on
// standard output, waits for a line on standard input, works, and ends with its result as a line of JSON.
const (
	benchVerb   = "bench"
	workerVerb  = "worker"
	workerReady = "ready"
)

// The verbs of a worker.
const (
	verbGenerate = "generate" // UDP frames out of a device
	verbSink     = "sink"     // counts them; the line on standard input ends it
	verbSend     = "send"     // one TCP stream
	verbReceive  = "receive"  // its other end; needs no line, ends with the stream
	verbProbe    = "probe"    // requests, and how long their answers take
	verbEcho     = "echo"     // answers them; the line on standard input ends it
	verbAttack   = "attack"   // hostile frames out of a device; a second line ends it
	verbAsk      = "ask"      // ARP and neighbour discovery; a second line ends it
)

// workerCommand is hidden: the benchmarks start it in processes of its own.
func workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    workerVerb + " VERB SPEC",
		Short:  "one of the processes of a benchmark",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return runWorker(args[0], args[1], os.Stdin, os.Stdout)
		},
	}
}

func runWorker(verb, spec string, in io.Reader, out io.Writer) error {
	c := &console{in: bufio.NewReader(in), out: out}
	switch verb {
	case verbGenerate:
		return work(c, spec, generate)
	case verbSink:
		return work(c, spec, sink)
	case verbSend:
		return work(c, spec, send)
	case verbReceive:
		return work(c, spec, receive)
	case verbProbe:
		return work(c, spec, probe)
	case verbEcho:
		return work(c, spec, echo)
	case verbAttack:
		return work(c, spec, attack)
	case verbAsk:
		return work(c, spec, ask)
	}
	return fmt.Errorf("unknown worker %q", verb)
}

// work decodes the spec, does the job and writes down its result.
func work[S, R any](c *console, spec string, job func(*console, S) (R, error)) error {
	var s S
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return fmt.Errorf("decode the worker's spec: %w", err)
	}
	result, err := job(c, s)
	if err != nil {
		return err
	}
	return json.NewEncoder(c.out).Encode(result)
}

// console is a worker's connection to the benchmark.
type console struct {
	in  *bufio.Reader
	out io.Writer
}

func (c *console) ready() error {
	_, err := fmt.Fprintln(c.out, workerReady)
	return err
}

// wait blocks until the benchmark sends a line, or is gone.
func (c *console) wait() error {
	if _, err := c.in.ReadString('\n'); err != nil {
		return fmt.Errorf("the benchmark went away: %w", err)
	}
	return nil
}

// enterForGood locks the goroutine to its thread and moves that into the namespace; sockets made on it
// stay in that namespace whoever uses them.
func enterForGood(netnsPath string) error {
	file, err := os.Open(netnsPath)
	if err != nil {
		return err
	}
	defer file.Close()
	runtime.LockOSThread()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", netnsPath, err)
	}
	return nil
}
