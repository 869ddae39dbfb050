package bench

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

//go:embed raw/raw.c
var rawSource []byte

// absentError says why a peer can't be measured on this machine.
type absentError struct{ peer, why string }

func (e *absentError) Error() string { return e.peer + " is absent: " + e.why }

// raw is the baseline: two TAPs and a C program that reads one and writes the other.
type raw struct {
	from, to pod
	proc     *process
}

// startRaw builds the program with cc in dir, starts it, and sets up its devices like the switch's.
func startRaw(ctx context.Context, s *session) (subject, error) {
	program, err := buildRaw(ctx, s.dir)
	if err != nil {
		return nil, err
	}
	r := new(raw)
	r.from, r.to = podPair(s, "raw")
	if err := r.start(ctx, s, program); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func buildRaw(ctx context.Context, dir string) (program string, err error) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		return "", &absentError{peer: "raw", why: "it is built with a C compiler and there is no cc in PATH (Debian: apt install gcc libc6-dev)"}
	}
	source := filepath.Join(dir, "raw.c")
	program = filepath.Join(dir, "raw")
	if err := os.WriteFile(source, rawSource, 0o600); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, cc, "-O2", "-o", program, source)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir) // cc leaves its temporary files there when it is interrupted
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build raw: %w: %s", err, out)
	}
	return program, nil
}

func (r *raw) start(ctx context.Context, s *session, program string) error {
	for _, p := range []pod{r.from, r.to} {
		if err := makeNetns(p.netns); err != nil {
			return err
		}
	}
	cmd := exec.Command(program, netnsPath(r.from.netns), podDevice, netnsPath(r.to.netns), podDevice)
	var err error
	if r.proc, err = startProcess("raw", cmd, "", s.forward); err != nil {
		return err
	}
	if err := r.proc.awaitReady(ctx, func() bool { return strings.Contains(r.proc.log.String(), "ready") }); err != nil {
		return err
	}
	return errors.Join(r.from.setUp(), r.to.setUp())
}

// setUp gives a plain TAP what the switch's attachment gives a pod's.
func (p *pod) setUp() error {
	return errors.Join(inNetns(p.netns, p.configure), p.readMAC())
}

func (p *pod) configure() error {
	link, err := netlink.LinkByName(podDevice)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", podDevice, p.netns, err)
	}
	addr := &netlink.Addr{IPNet: prefixNet(p.addr)}
	for _, step := range []struct {
		what string
		err  error
	}{
		{"set MTU", netlink.LinkSetMTU(link, podMTU)},
		{"set queue length", netlink.LinkSetTxQLen(link, podQueue)},
		{"add address", netlink.AddrAdd(link, addr)},
		{"raise", netlink.LinkSetUp(link)},
	} {
		if step.err != nil {
			return fmt.Errorf("%s of %s in %s: %w", step.what, podDevice, p.netns, step.err)
		}
	}
	return nil
}

func (r *raw) name() string                          { return "raw" }
func (r *raw) pods() (from, to pod)                  { return r.from, r.to }
func (r *raw) pids() []int                           { return []int{r.proc.pid()} }
func (r *raw) drops(context.Context) (uint64, error) { return 0, nil } // it counts none; a loss shows in the balance

func (r *raw) close() error {
	if r.proc != nil {
		r.proc.kill()
	}
	return deleteNetns(r.from.netns, r.to.netns)
}

// deleteNetns removes those of the namespaces that exist.
func deleteNetns(names ...string) error {
	var err error
	for _, name := range names {
		if e := netns.DeleteNamed(name); e != nil && !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("remove network namespace %s: %w", name, e))
		}
	}
	return err
}

// awaitReady polls until the process is ready, or has ended.
func (p *process) awaitReady(ctx context.Context, ready func() bool) error {
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-p.done:
			return p.failed(fmt.Errorf("it ended before it was ready: %v", p.err))
		case <-deadline:
			return p.failed(fmt.Errorf("it was not ready within %v", patience))
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
