package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/attach"
)

// Everything that a lab keeps is in labDir; its namespaces begin with labPrefix.
const (
	labDir    = "/run/tapyard-lab"
	labPrefix = "tapyard-"

	labLAN      = "lan"      // the agent that is the nodes' network
	labInternet = "internet" // the nodes' default gateway
)

// labPatience is how long building a lab, or ending it, may take altogether; three nodes take 3 seconds.
const labPatience = 2 * time.Minute

// The lab's addresses: node i is host 10+i of the LAN and owns the i-th pod subnets. Both families are
// written in decimal digits, so that people recognise a node in either.
const (
	labLAN4, labLAN6         = "192.168.1.%d", "fd00:192:168:1::%d"
	labLANBits4, labLANBits6 = 24, 64
	labSubnet4, labSubnet6   = "10.244.%d.0/24", "fd00:10:244:%d::/64"

	labMaxNodes = 244 // 10+244 is the last host of the LAN
	labMaxPods  = 252 // of 254 hosts in a pod subnet, two are the gateway and the switch
)

var labClusterCIDRs = []string{"10.244.0.0/16", "fd00:10:244::/48"}

// LabConfig says what LabUp builds.
type LabConfig struct {
	Nodes     int    `json:"nodes"`     // 1 to 244
	Pods      int    `json:"pods"`      // per node, 0 to 252
	Workers   int    `json:"workers"`   // of each node's agent; 0: the agent's default
	Underlay6 bool   `json:"underlay6"` // tunnels over IPv6
	MTU       int    `json:"mtu"`       // of pods, in bytes; 0 follows the underlay
	PortType  string `json:"portType"`  // of pods: tap, also when empty, or veth

	Executable string    `json:"-"` // the tapyard binary, with tapyard-cni beside it; "" is this process's own
	Progress   io.Writer `json:"-"` // a line per step; nil: nowhere
}

// Lab is several nodes with pods on one machine, in network namespaces. A process of its own, the
// supervisor, has built it and keeps its agents running until Down.
type Lab struct {
	ID        string    `json:"id"`  // in the environment of the lab's processes: tells them from others
	Exe       string    `json:"exe"` // what they run
	Config    LabConfig `json:"config"`
	Nodes     []LabNode `json:"nodes"`
	Pods      []LabPod  `json:"pods"`
	Ready     bool      `json:"ready"`
	MadeNetns bool      `json:"madeNetns"` // the folder /run/netns wasn't there before
}

// LabNode is a node: a namespace with an agent in it.
type LabNode struct {
	Name       string         `json:"name"`
	Netns      string         `json:"netns"`    // as `ip netns` shows it
	Underlay   []netip.Addr   `json:"underlay"` // the first one ends the tunnels
	PodSubnets []netip.Prefix `json:"podSubnets"`
}

// LabPod is a pod; its addresses and MAC are known when the lab is ready.
type LabPod struct {
	Name      string       `json:"name"`
	Node      string       `json:"node"`
	Netns     string       `json:"netns"` // as `ip netns` shows it
	Addresses []netip.Addr `json:"addresses"`
	MAC       string       `json:"mac"`
}

// LabUp builds a lab and returns when every pod is attached. It removes what is left of a dead lab first,
// and refuses when one is alive. When it fails, or ctx ends, everything is gone again.
func LabUp(ctx context.Context, cfg LabConfig) (*Lab, error) {
	l, err := labPlan(cfg)
	if err != nil {
		return nil, err
	}
	if err := labCheckMachine(l.Exe); err != nil {
		return nil, err
	}
	unlock, err := labLock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := labClearWay(ctx, cfg.Progress); err != nil {
		return nil, err
	}
	if err := l.prepare(); err != nil {
		return nil, errors.Join(err, l.sweep())
	}
	err = l.startSupervisor()
	if err == nil {
		err = l.awaitReady(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, l.end())
	}
	return l, nil
}

// LabOpen returns the lab of this machine, ready or not, alive or dead.
func LabOpen() (*Lab, error) {
	text, err := os.ReadFile(labFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("there is no lab on this machine; 'tapyard lab up' makes one")
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab's description: %w", err)
	}
	l := new(Lab)
	if err := json.Unmarshal(text, l); err != nil {
		return nil, fmt.Errorf("read the lab's description %s ('tapyard lab down' removes what is left): %w", labFile(), err)
	}
	return l, nil
}

// Down detaches the pods, ends every process of the lab and removes its namespaces and files. It is an
// error, reported after all of that, when an agent's ledger didn't balance.
func (l *Lab) Down() error {
	return labDown(l.Config.Progress)
}

// LabAdminSocket returns the admin socket of a lab node's agent; "lan" is the agent between the nodes.
func LabAdminSocket(node string) (path string, err error) {
	l, err := LabOpen()
	if err != nil {
		return "", err
	}
	if !slices.Contains(l.agents(), node) {
		return "", fmt.Errorf("the lab has no node %q; it has %v", node, l.agents())
	}
	return labSocket(node, "admin.sock"), nil
}

func labFile() string                  { return filepath.Join(labDir, "lab.json") }
func labLogFile(agent string) string   { return filepath.Join(labDir, agent, "agent.log") }
func labSocket(agent, s string) string { return filepath.Join(labDir, agent, "run", s) }

// labPlan names and numbers everything.
func labPlan(cfg LabConfig) (*Lab, error) {
	if cfg.Nodes < 1 || cfg.Nodes > labMaxNodes {
		return nil, fmt.Errorf("a lab of %d nodes: it has 1 to %d", cfg.Nodes, labMaxNodes)
	}
	if cfg.Pods < 0 || cfg.Pods > labMaxPods {
		return nil, fmt.Errorf("%d pods on a node: a lab has 0 to %d", cfg.Pods, labMaxPods)
	}
	if cfg.PortType != "" && cfg.PortType != attach.TAP && cfg.PortType != attach.Veth {
		return nil, fmt.Errorf("port type %q: %s or %s", cfg.PortType, attach.TAP, attach.Veth)
	}
	exe, err := labExecutable(cfg.Executable)
	if err != nil {
		return nil, fmt.Errorf("find the tapyard binary: %w", err)
	}
	l := &Lab{ID: rand.Text(), Exe: exe, Config: cfg}
	for i := 1; i <= cfg.Nodes; i++ {
		name := fmt.Sprintf("n%d", i)
		l.Nodes = append(l.Nodes, LabNode{
			Name: name, Netns: labPrefix + name, Underlay: labHost(10+i, cfg.Underlay6),
			PodSubnets: []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf(labSubnet4, i)),
				netip.MustParsePrefix(fmt.Sprintf(labSubnet6, i)),
			},
		})
		for j := 1; j <= cfg.Pods; j++ {
			pod := fmt.Sprintf("%sp%d", name, j)
			l.Pods = append(l.Pods, LabPod{Name: pod, Node: name, Netns: labPrefix + pod})
		}
	}
	return l, nil
}

// labExecutable returns the binary as /proc names it for its processes.
func labExecutable(path string) (string, error) {
	if path == "" {
		return os.Executable()
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// labHost returns the LAN's host n in both families, the tunnels' one first.
func labHost(n int, v6First bool) []netip.Addr {
	addrs := []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf(labLAN4, n)),
		netip.MustParseAddr(fmt.Sprintf(labLAN6, n)),
	}
	if v6First {
		slices.Reverse(addrs)
	}
	return addrs
}

// labCheckMachine says before anything is made what would fail later.
func labCheckMachine(exe string) error {
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root: it makes network namespaces; run it with sudo")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("a lab needs TAP devices ('modprobe tun'): %w", err)
	}
	if err := unix.Access(labPlugin(exe), unix.X_OK); err != nil {
		return fmt.Errorf("a lab attaches pods by %s, which should lie beside this program ('make build'): %w", labPlugin(exe), err)
	}
	return nil
}

func labPlugin(exe string) string { return filepath.Join(filepath.Dir(exe), "tapyard-cni") }

// labLock lets one process at a time build or end a lab: an abstract socket leaves nothing behind, whatever
// its owner dies of.
func labLock() (unlock func() error, err error) {
	s, err := net.Listen("unix", "@tapyard-lab")
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, errors.New("another 'tapyard lab up', 'lab down' or 'demo' is at work on the lab; wait for it, or end it")
	}
	if err != nil {
		return nil, fmt.Errorf("lock the lab: %w", err)
	}
	return s.Close, nil
}

// agents are the names of the agents, the LAN's first.
func (l *Lab) agents() []string {
	names := []string{labLAN}
	for _, n := range l.Nodes {
		names = append(names, n.Name)
	}
	return names
}

// netns are all the namespaces of the lab.
func (l *Lab) netns() []string {
	names := []string{labPrefix + labLAN, labPrefix + labInternet}
	for _, n := range l.Nodes {
		names = append(names, n.Netns)
	}
	for _, p := range l.Pods {
		names = append(names, p.Netns)
	}
	return names
}

// save replaces the lab's description at once, so that a reader finds the old one or the new one.
func (l *Lab) save() error {
	next := labFile() + ".new"
	if err := writeJSON(next, l); err != nil {
		return fmt.Errorf("write the lab's description: %w", err)
	}
	return os.Rename(next, labFile())
}

// prepare makes the lab's folder with the agents' configurations.
func (l *Lab) prepare() error {
	_, err := os.Stat(netnsDir)
	l.MadeNetns = errors.Is(err, os.ErrNotExist)
	if err := os.Mkdir(labDir, 0o700); err != nil {
		return fmt.Errorf("make the lab's folder: %w", err)
	}
	if err := l.save(); err != nil {
		return err
	}
	for _, agent := range l.agents() {
		if err := os.MkdirAll(filepath.Dir(labSocket(agent, "cni.sock")), 0o700); err != nil {
			return fmt.Errorf("make the folder of %s: %w", agent, err)
		}
	}
	return l.writeConfigs()
}

// writeConfigs writes each agent's tapyard.yaml and the nodes' common peers.yaml as JSON, which is YAML.
func (l *Lab) writeConfigs() error {
	peersFile := filepath.Join(labDir, "peers.yaml")
	type peer struct {
		Name       string         `json:"name"`
		Underlay   []netip.Addr   `json:"underlay"`
		PodSubnets []netip.Prefix `json:"podSubnets"`
	}
	var peers []peer
	for _, n := range l.Nodes {
		peers = append(peers, peer{n.Name, n.Underlay, n.PodSubnets})
	}
	err := writeJSON(peersFile, map[string]any{"clusterCIDRs": labClusterCIDRs, "peers": peers})
	err = errors.Join(err, labWriteConfig(labLAN, map[string]any{"mode": "l2"}))
	for _, n := range l.Nodes {
		err = errors.Join(err, labWriteConfig(n.Name, map[string]any{
			"mode": "routed", "podSubnets": n.PodSubnets, "underlay": n.Underlay, "peersFile": peersFile, "workers": l.Config.Workers,
			"mtu": l.Config.MTU, "portType": cmp.Or(l.Config.PortType, attach.TAP),
		}))
	}
	if err != nil {
		return fmt.Errorf("write the agents' configurations: %w", err)
	}
	return nil
}

func labConfigFile(agent string) string { return filepath.Join(labDir, agent, "tapyard.yaml") }

func labWriteConfig(agent string, keys map[string]any) error {
	keys["name"] = agent
	keys["runDir"] = filepath.Join(labDir, agent, "run")
	keys["stateDir"] = filepath.Join(labDir, agent, "state")
	return writeJSON(labConfigFile(agent), keys)
}
