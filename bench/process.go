package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a process may take to get ready or to end; on a busy machine that is a second.
const patience = 20 * time.Second

// process is a child that dies with us, whatever we die of.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *tailBuffer // standard error, and standard output unless it is a pipe
	done chan struct{}
	err  error // of Wait; read after done is closed
}

// startProcess starts cmd inside a network namespace ("" is ours) on the given CPUs. What it writes to
// where the caller has not redirected it is kept for error messages.
func startProcess(name string, cmd *exec.Cmd, netnsName string, cpus unix.CPUSet) (*process, error) {
	p := &process{name: name, cmd: cmd, log: new(tailBuffer), done: make(chan struct{})}
	cmd.Stderr = p.log
	if cmd.Stdout == nil {
		cmd.Stdout = p.log
	}
	// A group of its own: Ctrl-C is ours to answer, in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	start := func() error { return onCPUs(cpus, cmd.Start) }
	if netnsName != "" {
		start = func() error { return inNetns(netnsName, func() error { return onCPUs(cpus, cmd.Start) }) }
	}
	if err := start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop asks the process to end, then makes it; it returns how it ended, its last words included.
func (p *process) stop(sig os.Signal) error {
	p.cmd.Process.Signal(sig)
	return p.wait(patience)
}

// wait waits for the process to end by itself, and kills it when it doesn't.
func (p *process) wait(limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.kill()
		return p.failed(fmt.Errorf("it did not end within %v and was killed", limit))
	}
	if p.err != nil {
		return p.failed(p.err)
	}
	return nil
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// failed adds the process's last words to err.
func (p *process) failed(err error) error {
	if words := p.log.String(); words != "" {
		return fmt.Errorf("%s: %w; it said: %s", p.name, err, words)
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

// onCPUs calls f with the calling thread on the CPUs given; a process that f starts inherits them.
func onCPUs(cpus unix.CPUSet, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("read CPU affinity: %w", err)
	}
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("set CPU affinity: %w", err)
	}
	return errors.Join(f(), unix.SchedSetaffinity(0, &before))
}

// splitCPUs parts the CPUs that we may use in two: one half makes and swallows the traffic, the other
// forwards it, so that neither takes time from the other. A single CPU is shared.
func splitCPUs() (load, forward unix.CPUSet, err error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return load, forward, fmt.Errorf("read CPU affinity: %w", err)
	}
	n := all.Count()
	if n < 2 {
		return all, all, nil
	}
	for cpu, given := 0, 0; given < n; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		if given < n/2 {
			load.Set(cpu)
		} else {
			forward.Set(cpu)
		}
		given++
	}
	return load, forward, nil
}

// worker is our end of a worker process.
type worker struct {
	*process
	in  *os.File
	out *bufio.Reader
	end io.Closer // of out
}

// startWorker starts exe as a worker and waits until it is ready. The caller must end it with collect or
// abandon.
func startWorker(ctx context.Context, exe, verb string, spec any, cpus unix.CPUSet) (*worker, error) {
	arg, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe, benchVerb, workerVerb, verb, string(arg))
	in, out, closeTheirs, err := workerPipes(cmd)
	if err != nil {
		return nil, err
	}
	p, err := startProcess("bench worker "+verb, cmd, "", cpus)
	closeTheirs()
	if err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	w := &worker{process: p, in: in, out: bufio.NewReader(out), end: out}
	if line, err := w.out.ReadString('\n'); strings.TrimSpace(line) != workerReady {
		w.abandon()
		return nil, w.failed(fmt.Errorf("it did not get ready: %w", err))
	}
	return w, nil
}

// workerPipes are pipes of our own, since exec.Cmd's would be closed by its Wait.
func workerPipes(cmd *exec.Cmd) (in, out *os.File, closeTheirs func(), err error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		theirIn.Close()
		in.Close()
		return nil, nil, nil, err
	}
	cmd.Stdin, cmd.Stdout = theirIn, theirOut
	return in, out, func() { theirIn.Close(); theirOut.Close() }, nil
}

// release sends the line that a worker waits for.
func (w *worker) release() error {
	_, err := io.WriteString(w.in, "\n")
	return err
}

// collect waits for the worker's result and its end.
func (w *worker) collect(result any) error {
	defer w.abandon()
	line, err := w.out.ReadBytes('\n')
	if e := w.wait(patience); e != nil {
		return e
	}
	if err != nil {
		return w.failed(fmt.Errorf("read its result: %w", err))
	}
	return json.Unmarshal(line, result)
}

// abandon ends a worker whose result nobody wants; it may be called again.
func (w *worker) abandon() {
	w.kill()
	w.in.Close()
	w.end.Close()
}

// tailBuffer keeps the last 2 KiB written to it; exec.Cmd writes from one goroutine.
type tailBuffer struct {
	mu  sync.Mutex
	buf []byte
}

// Write implements io.Writer.
func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	b.buf = b.buf[max(0, len(b.buf)-2048):]
	return len(p), nil
}

// String returns the tail.
func (b *tailBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(bytes.TrimSpace(b.buf))
}
