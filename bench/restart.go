package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	restartNodes, restartPods = 3, 2

	// restartRecovery is how long a pair may stay silent after a kill; more is a switch that didn't come back.
	restartRecovery = 20 * time.Second
)

// restartPause lies between two kills: each agent has then lived a little longer than labStable when its
// turn comes again, so that the supervisor starts it at once and the switch is measured, not the pause.
const restartPause = labStable/restartNodes + 500*time.Millisecond

// RestartConfig says how often agents are killed.
type RestartConfig struct {
	Kills    int       // at least 1
	Progress io.Writer // a line per kill; nil is nowhere
}

// Restart measures what pods notice when their agent is killed: it brings up a lab, lets every pair of pods
// exchange a datagram every 10 ms and hold a TCP stream, kills the nodes' agents with SIGKILL in turn, and
// reports the gaps between answers, the streams that survived and the pods that kept their addresses.
func Restart(ctx context.Context, cfg RestartConfig) (report *Report, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	cfg.Kills = max(cfg.Kills, 1)
	lab, err := LabUp(ctx, LabConfig{Nodes: restartNodes, Pods: restartPods, Progress: cfg.Progress})
	if err != nil {
		return nil, fmt.Errorf("bring up a lab: %w", err)
	}
	defer func() { err = errors.Join(err, lab.Down()) }()
	before, err := lab.podConfigs()
	if err != nil {
		return nil, err
	}
	m, err := startMesh(lab)
	if err != nil {
		return nil, fmt.Errorf("start probes between the pods: %w", err)
	}
	kills, err := killInTurn(ctx, lab, m, cfg)
	outcome := m.stop()
	if err != nil {
		return nil, err
	}
	after, err := lab.podConfigs()
	if err != nil {
		return nil, err
	}
	report = &Report{Host: hostLine(), Commit: commit()}
	report.Rows = restartRows(kills, outcome, before, after)
	return report, nil
}

// kill is one agent's death.
type kill struct {
	node string
	at   time.Time
}

// killInTurn kills the nodes' agents one after the other; every pair must have answered again before the
// next one.
func killInTurn(ctx context.Context, lab *Lab, m *mesh, cfg RestartConfig) ([]kill, error) {
	if err := pause(ctx, labStable); err != nil {
		return nil, err
	}
	var kills []kill
	for i := range cfg.Kills {
		k := kill{node: lab.Nodes[i%len(lab.Nodes)].Name, at: time.Now()}
		if err := killAgent(lab, k.node); err != nil {
			return nil, err
		}
		kills = append(kills, k)
		if err := pause(ctx, restartPause); err != nil {
			return nil, err
		}
		if err := m.awaitAnswers(ctx, time.Now()); err != nil {
			return nil, fmt.Errorf("after agent %s was killed: %w", k.node, err)
		}
		hit, bystanders := m.gaps(k, time.Now())
		fmt.Fprintf(cfg.Progress, "restart %d/%d: agent %s killed: gaps up to %v, of bystanders up to %v\n",
			i+1, cfg.Kills, k.node, longest(hit), longest(bystanders))
	}
	return kills, nil
}

func killAgent(lab *Lab, node string) error {
	p, err := lab.openProcess(node)
	if err != nil {
		return err
	}
	if p == nil {
		return fmt.Errorf("agent %s is not running: see %s", node, labLogFile(node))
	}
	return errors.Join(p.signal(unix.SIGKILL), p.close())
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// restartRows sums up: gaps of the pairs that the killed agent serves, and of the others.
func restartRows(kills []kill, o meshOutcome, before, after map[string]string) []Row {
	var hit, bystanders []meshGap
	for i, k := range kills {
		until := o.ended
		if i+1 < len(kills) {
			until = kills[i+1].at
		}
		h, b := o.mesh.gaps(k, until)
		hit, bystanders = append(hit, h...), append(bystanders, b...)
	}
	same := 0
	for name, config := range before {
		if after[name] == config {
			same++
		}
	}
	q, _ := quartiles(inMilliseconds(hit))
	return []Row{
		{Name: "restart.gap.p50", Value: q[1], Unit: "ms between answers at a kill; 10 is none", Low: q[0], High: q[2]},
		single("restart.gap.longest", milliseconds(longest(hit).time), "ms"),
		single("restart.gap.bystanders", milliseconds(longest(bystanders).time), "ms, longest, between pods of other nodes"),
		single("restart.streams", float64(o.survived), fmt.Sprintf("of %d TCP streams survived", len(o.mesh.pairs))),
		single("restart.addresses", float64(same), fmt.Sprintf("of %d pods have the addresses, MAC and routes of before", len(before))),
	}
}

// single is a row of one figure.
func single(name string, v float64, unit string) Row {
	return Row{Name: name, Value: v, Unit: unit, Low: v, High: v}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func inMilliseconds(gaps []meshGap) []float64 {
	ms := make([]float64, len(gaps))
	for i, g := range gaps {
		ms[i] = milliseconds(g.time)
	}
	return ms
}

// podConfigs returns, by pod, its device's MAC, addresses and routes as text to be compared.
func (l *Lab) podConfigs() (map[string]string, error) {
	configs := map[string]string{}
	for _, p := range l.Pods {
		err := inNetns(p.Netns, func() (err error) {
			configs[p.Name], err = deviceConfig(podDevice)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read the configuration of pod %s: %w", p.Name, err)
		}
	}
	return configs, nil
}

// deviceConfig describes a device of the current namespace: MAC, addresses, routes.
func deviceConfig(device string) (string, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return "", err
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return "", fmt.Errorf("list addresses: %w", err)
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return "", fmt.Errorf("list routes: %w", err)
	}
	lines := []string{link.Attrs().HardwareAddr.String()}
	for _, a := range addrs {
		lines = append(lines, a.IPNet.String())
	}
	for _, r := range routes {
		lines = append(lines, fmt.Sprintf("%v via %v", r.Dst, r.Gw))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}
