package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tapyard/switch/observe"
)

const (
	demoNodes, demoPods = 3, 2
	demoStreamTime      = 2 * time.Second
	demoRounds          = 3 // of the comparison with raw: the least that has a median
)

// demoRest is how long a lab may take to come to rest. A ledger that is read while frames are on their way
// doesn't balance, and a pod's kernel sends one of its own now and then.
const demoRest = 5 * time.Second

// DemoCommand returns the command `tapyard demo`.
func DemoCommand() *cobra.Command {
	var cfg LabConfig
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Build a lab, show that everything reaches everything and how fast, and take it down",
		Long: `Builds a lab of three nodes with two pods each; probes every pod and node from every other, in both families;
measures a TCP stream on one node and across nodes, and frames per second beside a minimal forwarder in C; shows
each node's ledger; takes everything down. The last line is "demo: ok", or "demo: failed: " and why.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Nodes, cfg.Pods, cfg.Progress = demoNodes, demoPods, cmd.OutOrStdout()
			d := &demo{out: cmd.OutOrStdout(), cfg: cfg, keep: keep, start: time.Now()}
			return d.conclude(d.run(cmd.Context()))
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the lab up when the demo fails")
	bindLabConfig(cmd, &cfg)
	return cmd
}

type demo struct {
	out   io.Writer
	cfg   LabConfig
	keep  bool
	start time.Time
	lab   *Lab
	procs []LabProcess // of the lab when it was ready
}

// demoStep is a chapter of the demo.
type demoStep struct {
	title string
	run   func(context.Context) error
}

// run goes through the steps until one fails, and takes the lab down in any case.
func (d *demo) run(ctx context.Context) (err error) {
	steps := []demoStep{
		{"a lab of three nodes with two pods each", d.up},
		{"who reaches whom", d.matrix},
		{"one TCP stream", d.streams},
		{"64-byte frames per second on one node, beside raw, a minimal forwarder in C", d.pps},
		{"what became of every frame", d.ledgers},
	}
	total := len(steps) + 1
	for i, s := range steps {
		d.announce(i+1, total, s.title)
		if err = s.run(ctx); err == nil {
			err = d.sameProcesses()
		}
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		if err != nil {
			break
		}
	}
	if d.lab == nil || d.keep && err != nil {
		return err
	}
	d.announce(total, total, "taking it down")
	return errors.Join(err, d.lab.Down())
}

func (d *demo) announce(step, total int, title string) {
	fmt.Fprintf(d.out, "\n[%d/%d] %s (at %.0f s)\n", step, total, title, time.Since(d.start).Seconds())
}

// conclude writes the last line, which scripts look for.
func (d *demo) conclude(err error) error {
	if err == nil {
		_, err = fmt.Fprintln(d.out, "\ndemo: ok")
		return err
	}
	if d.keep && d.lab != nil {
		fmt.Fprintln(d.out, "\nthe lab stays up; 'tapyard lab down' ends it")
	}
	fmt.Fprintf(d.out, "\ndemo: failed: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	return ExitCode(1)
}

func (d *demo) up(ctx context.Context) (err error) {
	if d.lab, err = LabUp(ctx, d.cfg); err != nil {
		return fmt.Errorf("lab up: %w", err)
	}
	if d.procs, err = d.lab.Processes(); err != nil {
		return err
	}
	return d.lab.writeStatus(d.out)
}

func (d *demo) matrix(ctx context.Context) error {
	m, err := Matrix(ctx, d.lab)
	if err != nil {
		return err
	}
	if err := m.Write(d.out); err != nil {
		return err
	}
	if len(m.Failures) > 0 {
		return fmt.Errorf("%d of %d probes failed: %s", len(m.Failures), len(m.Probes), strings.Join(m.Failures, "; "))
	}
	fmt.Fprintf(d.out, "%d probes by ICMP, TCP and UDP, each answered and none translated on its way\n", len(m.Probes))
	return nil
}

// streams measures from the first pod to its neighbour, and to a pod on another node.
func (d *demo) streams(ctx context.Context) error {
	for _, s := range []struct{ from, to, where string }{{"n1p1", "n1p2", "on one node"}, {"n1p1", "n2p1", "across nodes"}} {
		gbps, err := d.lab.stream(ctx, s.from, s.to, demoStreamTime)
		if err != nil {
			return fmt.Errorf("TCP stream %s, %s to %s: %w", s.where, s.from, s.to, err)
		}
		fmt.Fprintf(d.out, "%-14s%s to %s  %6.2f Gb/s\n", s.where, s.from, s.to, gbps)
	}
	return nil
}

// stream returns the Gb/s of one TCP stream over IPv4 between two pods.
func (l *Lab) stream(ctx context.Context, from, to string, d time.Duration) (gbps float64, err error) {
	addrs, err := l.addressesOf(to, false)
	if err != nil {
		return 0, err
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return 0, fmt.Errorf("read CPU affinity: %w", err)
	}
	at := netip.AddrPortFrom(addrs[0], tcpPort)
	recv, err := startWorker(ctx, l.Exe, verbReceive, streamSpec{Netns: netnsPath(labPrefix + to), At: at}, cpus)
	if err != nil {
		return 0, err
	}
	defer recv.abandon()
	snd, err := startWorker(ctx, l.Exe, verbSend, streamSpec{Netns: netnsPath(labPrefix + from), At: at, Time: d}, cpus)
	if err != nil {
		return 0, err
	}
	defer snd.abandon()
	var sent, received streamResult
	if err := errors.Join(snd.release(), snd.collect(&sent), recv.collect(&received)); err != nil {
		return 0, err
	}
	if sent.Bytes != received.Bytes {
		return 0, fmt.Errorf("sent %d bytes, received %d", sent.Bytes, received.Bytes)
	}
	return 8 * float64(received.Bytes) / 1e9 / received.Took.Seconds(), nil
}

func (d *demo) pps(ctx context.Context) error {
	report, err := PPS(ctx, Config{Peers: []string{"raw"}, Repeat: demoRounds, Progress: d.out})
	if err != nil {
		return fmt.Errorf("frames per second: %w", err)
	}
	return report.WriteTable(d.out)
}

// ledgers shows each agent's ledger at rest.
func (d *demo) ledgers(ctx context.Context) error {
	t := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "AGENT\tRX\tORIGINATED\tCOPIED\tSPLIT\tTX\tMERGED\tCONSUMED\tDROPS\tIN FLIGHT\tBUFFERS OUT\t")
	var wrong []string
	for _, agent := range d.lab.agents() {
		l, err := ledgerAtRest(ctx, agent)
		if err != nil {
			return err
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n",
			agent, l.Rx, l.Originated, l.Copied, l.Split, l.Tx, l.Merged, l.Consumed, l.Drops, l.InFlight, l.PoolLive)
		if !ledgerBalances(l) {
			wrong = append(wrong, agent)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if wrong != nil {
		return fmt.Errorf("the ledger of %s doesn't balance", strings.Join(wrong, ", "))
	}
	fmt.Fprintln(d.out, "rx + originated + copied + split = tx + merged + consumed + drops, everywhere")
	return nil
}

// sameProcesses fails when an agent died meanwhile. The supervisor has started it again, with a new ledger
// that balances, so that nothing else would tell.
func (d *demo) sameProcesses() error {
	now, err := d.lab.Processes()
	if err != nil {
		return err
	}
	if slices.Equal(now, d.procs) {
		return nil
	}
	log := strings.Split(labTail(labSupervisorLog()), "\n")
	deaths := slices.DeleteFunc(log, func(line string) bool { return !strings.Contains(line, " died: ") })
	return fmt.Errorf("processes of the lab died: there were %v, now %v; its supervisor wrote: %q", d.procs, now, deaths)
}

// ledgerAtRest returns an agent's ledger once it balances, or how it was after demoRest.
func ledgerAtRest(ctx context.Context, agent string) (observe.Ledger, error) {
	client := observe.Client{Socket: labSocket(agent, "admin.sock")}
	for deadline := time.Now().Add(demoRest); ; time.Sleep(100 * time.Millisecond) {
		var l observe.Ledger
		if err := client.Get(ctx, "ledger", &l); err != nil {
			return l, fmt.Errorf("ledger of %s: %w", agent, err)
		}
		if ledgerBalances(l) || time.Now().After(deadline) {
			return l, nil
		}
	}
}

// ledgerBalances computes the sum itself instead of believing in_flight.
func ledgerBalances(l observe.Ledger) bool {
	balanced := func(a observe.Account) bool {
		return a.Rx+a.Originated+a.Copied+a.Split == a.Tx+a.Merged+a.Consumed+a.Drops && a.InFlight == 0
	}
	return balanced(l.Account) && balanced(l.Wire) && l.PoolLive == 0
}
