package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// agentUnderlay is the address of a node without peers, so that nothing is ever sent from it (RFC 5737: an
// address for documentation).
const agentUnderlay = "192.0.2.1"

// clusterCIDRs hold the subnets of all nodes' pods.
var clusterCIDRs = []string{"10.244.0.0/16", "fd00:10:244::/48"}

// ourName is the switch's in the rows of a report.
const ourName = "tapyard"

// agentNode is a node with the switch itself, whose pods the real plugin attaches.
type agentNode struct {
	name     string
	netns    string // that the agent runs in
	cpus     unix.CPUSet
	underlay string // its address
	subnets  []string
	peers    []agentPeer
	cluster  []string       // CIDRs of all nodes' pods; nil is clusterCIDRs
	more     map[string]any // keys of tapyard.yaml beside the usual ones
	dir      string
	proc     *process
	cni      *libcni.CNIConfig
	conf     *libcni.NetworkConfigList
	attached []*libcni.RuntimeConf
}

// agentPeer is an entry of peers.yaml.
type agentPeer struct {
	Name       string   `json:"name"`
	Underlay   []string `json:"underlay"`
	PodSubnets []string `json:"podSubnets"`
}

// agent is the switch with two pods on one node.
type agent struct {
	agentNode
	from, to pod
}

// startAgent starts an agent of its own in a namespace of its own and attaches two pods to it.
func startAgent(ctx context.Context, s *session) (subject, error) {
	a, err := newAgent(s)
	if err != nil {
		return nil, err
	}
	if err := a.start(ctx, s); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

func newAgent(s *session) (*agent, error) {
	dir, err := s.folder()
	return &agent{
		agentNode: agentNode{name: "bench", netns: benchPrefix + "node", cpus: s.forward, underlay: agentUnderlay, subnets: []string{podPrefix}, dir: dir},
		from:      pod{netns: benchPrefix + "pod-a", cpus: s.load},
		to:        pod{netns: benchPrefix + "pod-b", cpus: s.load},
	}, err
}

func (a *agent) start(ctx context.Context, s *session) error {
	if err := makeNetns(a.netns); err != nil {
		return err
	}
	if err := inNetns(a.netns, addUnderlay); err != nil {
		return err
	}
	return errors.Join(a.agentNode.start(ctx, s), a.attach(ctx, &a.from), a.attach(ctx, &a.to))
}

func addUnderlay() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr(agentUnderlay))}); err != nil {
		return fmt.Errorf("add %s to lo: %w", agentUnderlay, err)
	}
	return nil
}

// start starts the agent and waits until it is ready; its namespace has its underlay.
func (n *agentNode) start(ctx context.Context, s *session) error {
	config, err := n.writeConfig()
	if err != nil {
		return fmt.Errorf("write the agent's configuration: %w", err)
	}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(s.exe)}, filepath.Join(n.dir, "cni"), nil)
	if n.conf, err = n.conflist(); err != nil {
		return err
	}
	cmd := exec.Command(s.exe, "agent", "--config", config)
	if n.proc, err = startProcess("tapyard agent", cmd, n.netns, n.cpus); err != nil {
		return err
	}
	return n.proc.awaitReady(ctx, func() bool { return agentGet(ctx, n.socket("admin.sock"), "/v1/ready", nil) == nil })
}

func (n *agentNode) socket(name string) string { return filepath.Join(n.dir, "run", name) }

// writeConfig writes tapyard.yaml and peers.yaml as JSON, which is YAML.
func (n *agentNode) writeConfig() (path string, err error) {
	path = filepath.Join(n.dir, "tapyard.yaml")
	peers := filepath.Join(n.dir, "peers.yaml")
	config := map[string]any{
		"name":       n.name,
		"mode":       "routed",
		"podSubnets": n.subnets,
		"underlay":   []string{n.underlay},
		"peersFile":  peers,
		"runDir":     filepath.Join(n.dir, "run"),
		"stateDir":   filepath.Join(n.dir, "state"),
		"mtu":        podMTU,
		"logLevel":   "warn",
	}
	maps.Copy(config, n.more)
	cluster := n.cluster
	if cluster == nil {
		cluster = clusterCIDRs
	}
	return path, errors.Join(
		writeJSON(peers, map[string]any{"clusterCIDRs": cluster, "peers": append([]agentPeer{}, n.peers...)}),
		writeJSON(path, config),
	)
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// conflist has the plugin beside our executable speak to this agent.
func (n *agentNode) conflist() (*libcni.NetworkConfigList, error) {
	text, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "tapyard-bench",
		"plugins":    []any{map[string]string{"type": "tapyard-cni", "socket": n.socket("cni.sock")}},
	})
	if err != nil {
		return nil, err
	}
	conf, err := libcni.NetworkConfFromBytes(text)
	if err != nil {
		return nil, fmt.Errorf("read the conflist: %w", err)
	}
	return conf, nil
}

// attach makes the pod's namespace and runs the plugin as a container runtime would.
func (n *agentNode) attach(ctx context.Context, p *pod) error {
	if err := makeNetns(p.netns); err != nil {
		return err
	}
	rt := &libcni.RuntimeConf{ContainerID: p.netns, NetNS: netnsPath(p.netns), IfName: podDevice}
	answer, err := n.cni.AddNetworkList(ctx, n.conf, rt)
	if err != nil {
		return fmt.Errorf("attach %s by tapyard-cni: %w", p.netns, err)
	}
	n.attached = append(n.attached, rt)
	result, err := types100.NewResultFromResult(answer)
	if err != nil {
		return fmt.Errorf("read the plugin's result for %s: %w", p.netns, err)
	}
	for _, ip := range result.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok && addr.Unmap().Is4() {
			p.addr = addr.Unmap()
			return p.readMAC()
		}
	}
	return fmt.Errorf("the plugin gave %s no IPv4 address", p.netns)
}

func (a *agent) name() string         { return ourName }
func (a *agent) pods() (from, to pod) { return a.from, a.to }
func (a *agent) pids() []int          { return []int{a.proc.pid()} }

func (a *agent) close() error {
	return errors.Join(a.agentNode.close(), deleteNetns(a.from.netns, a.to.netns, a.netns))
}

// drops adds up what the agent's admin socket shows.
func (n *agentNode) drops(ctx context.Context) (uint64, error) {
	var rows []struct {
		WireFrames uint64 `json:"wire_frames"`
	}
	if err := agentGet(ctx, n.socket("admin.sock"), "/v1/drops", &rows); err != nil {
		return 0, err
	}
	var sum uint64
	for _, r := range rows {
		sum += r.WireFrames
	}
	return sum, nil
}

// close detaches the pods and stops the agent, which then checks its ledger; it tolerates a half-made agent.
func (n *agentNode) close() error {
	// A context of its own: cleaning up goes on when the benchmark was interrupted.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	for _, rt := range n.attached {
		err = errors.Join(err, n.cni.DelNetworkList(ctx, n.conf, rt))
	}
	if n.proc != nil {
		err = errors.Join(err, n.proc.stop(unix.SIGTERM))
	}
	return err
}

// agentGet asks an agent's admin socket and decodes the answer into v unless that is nil.
func agentGet(ctx context.Context, socket, path string, v any) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(req)
	if err != nil {
		return fmt.Errorf("ask the agent at %s: %w", socket, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent at %s answered GET %s with %s", socket, path, resp.Status)
	}
	if v == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("read the agent's answer to GET %s: %w", path, err)
	}
	return nil
}

// hostNet is addr alone, prefixNet is addr in the pods' subnet.
func hostNet(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}

func prefixNet(addr netip.Addr) *net.IPNet {
	bits := netip.MustParsePrefix(podPrefix).Bits()
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
}
