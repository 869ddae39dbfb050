package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// agentUnderlay is the address of the node that the agent believes to be; it has no peers, so that
// nothing is ever sent from it (RFC 5737: an address for documentation).
const agentUnderlay = "192.0.2.1"

// agent is the switch itself, with its pods attached by the real plugin.
type agent struct {
	node     string // namespace that the agent runs in
	from, to pod
	subnets  []string // of its pods
	dir      string
	proc     *process
	cni      *libcni.CNIConfig
	conf     *libcni.NetworkConfigList
	attached []*libcni.RuntimeConf
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
	if err != nil {
		return nil, err
	}
	return &agent{
		node:    benchPrefix + "node",
		from:    pod{netns: benchPrefix + "pod-a"},
		to:      pod{netns: benchPrefix + "pod-b"},
		subnets: []string{podPrefix},
		dir:     dir,
		cni:     libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(s.exe)}, filepath.Join(dir, "cni"), nil),
	}, nil
}

func (a *agent) start(ctx context.Context, s *session) error {
	for _, name := range []string{a.node, a.from.netns, a.to.netns} {
		if err := makeNetns(name); err != nil {
			return err
		}
	}
	if err := inNetns(a.node, addUnderlay); err != nil {
		return err
	}
	config, err := a.writeConfig()
	if err != nil {
		return fmt.Errorf("write the agent's configuration: %w", err)
	}
	cmd := exec.Command(s.exe, "agent", "--config", config)
	if a.proc, err = startProcess("tapyard agent", cmd, a.node, s.forward); err != nil {
		return err
	}
	ready := func() bool { return agentGet(ctx, a.socket("admin.sock"), "/v1/ready", nil) == nil }
	if err := a.proc.awaitReady(ctx, ready); err != nil {
		return err
	}
	return a.attachPods(ctx)
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

func (a *agent) socket(name string) string { return filepath.Join(a.dir, "run", name) }

// writeConfig writes tapyard.yaml and peers.yaml as JSON, which is YAML.
func (a *agent) writeConfig() (path string, err error) {
	path = filepath.Join(a.dir, "tapyard.yaml")
	peers := filepath.Join(a.dir, "peers.yaml")
	return path, errors.Join(
		writeJSON(peers, map[string]any{"clusterCIDRs": []string{"10.244.0.0/16", "fd00:10:244::/48"}, "peers": []any{}}),
		writeJSON(path, map[string]any{
			"name":       "bench",
			"mode":       "routed",
			"podSubnets": a.subnets,
			"underlay":   []string{agentUnderlay},
			"peersFile":  peers,
			"runDir":     filepath.Join(a.dir, "run"),
			"stateDir":   filepath.Join(a.dir, "state"),
			"mtu":        podMTU,
			"logLevel":   "warn",
		}),
	)
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// attachPods runs the plugin beside our executable as a container runtime would.
func (a *agent) attachPods(ctx context.Context) error {
	conflist, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "tapyard-bench",
		"plugins":    []any{map[string]string{"type": "tapyard-cni", "socket": a.socket("cni.sock")}},
	})
	if err != nil {
		return err
	}
	if a.conf, err = libcni.NetworkConfFromBytes(conflist); err != nil {
		return fmt.Errorf("read the conflist: %w", err)
	}
	return errors.Join(a.attach(ctx, &a.from), a.attach(ctx, &a.to))
}

func (a *agent) attach(ctx context.Context, p *pod) error {
	rt := &libcni.RuntimeConf{ContainerID: p.netns, NetNS: netnsPath(p.netns), IfName: podDevice}
	answer, err := a.cni.AddNetworkList(ctx, a.conf, rt)
	if err != nil {
		return fmt.Errorf("attach %s by tapyard-cni: %w", p.netns, err)
	}
	a.attached = append(a.attached, rt)
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

func (a *agent) name() string         { return "tapyard" }
func (a *agent) pods() (from, to pod) { return a.from, a.to }
func (a *agent) pid() int             { return a.proc.pid() }

// drops adds up what the agent's admin socket shows.
func (a *agent) drops(ctx context.Context) (uint64, error) {
	var rows []struct {
		WireFrames uint64 `json:"wire_frames"`
	}
	if err := agentGet(ctx, a.socket("admin.sock"), "/v1/drops", &rows); err != nil {
		return 0, err
	}
	var sum uint64
	for _, r := range rows {
		sum += r.WireFrames
	}
	return sum, nil
}

// close detaches the pods and stops the agent, which then checks its ledger; it tolerates a half-made agent.
func (a *agent) close() error {
	// A context of its own: cleaning up goes on when the benchmark was interrupted.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	for _, rt := range a.attached {
		err = errors.Join(err, a.cni.DelNetworkList(ctx, a.conf, rt))
	}
	if a.proc != nil {
		err = errors.Join(err, a.proc.stop(unix.SIGTERM))
	}
	return errors.Join(err, deleteNetns(a.from.netns, a.to.netns, a.node))
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
