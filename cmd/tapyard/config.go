package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"tapyard/cniplugin/ipam"
	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/attach"
	"tapyard/switch/control"
	"tapyard/switch/control/static"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

const defaultConfig = "/etc/tapyard/tapyard.yaml"

// The modes of an agent.
const (
	modeRouted = "routed"
	modeL2     = "l2"
)

// config is tapyard.yaml. Every key is also a flag, which wins.
type config struct {
	Name       string         `yaml:"name" json:"name"`
	Mode       string         `yaml:"mode" json:"mode"`
	PodSubnets []netip.Prefix `yaml:"podSubnets" json:"podSubnets"`
	Underlay   []netip.Addr   `yaml:"underlay" json:"underlay"`
	PeersFile  string         `yaml:"peersFile" json:"peersFile"`
	RunDir     string         `yaml:"runDir" json:"runDir"`
	StateDir   string         `yaml:"stateDir" json:"stateDir"`
	VNI        uint32         `yaml:"vni" json:"vni"`
	Port       uint16         `yaml:"port" json:"port"`
	Wire       string         `yaml:"wire" json:"wire"`
	MTU        int            `yaml:"mtu" json:"mtu"`
	Workers    int            `yaml:"workers" json:"workers"`
	IO         string         `yaml:"io" json:"io"`
	PodQueues  int            `yaml:"podQueues" json:"podQueues"`

	OffloadsOff []string `yaml:"offloadsOff" json:"offloadsOff"`

	PortType    string          `yaml:"portType" json:"portType"`
	Uplink      string          `yaml:"uplink" json:"uplink"`
	Networks    []networkConfig `yaml:"networks" json:"networks"`
	SourceGuard bool            `yaml:"sourceGuard" json:"sourceGuard"`
	Masquerade  bool            `yaml:"masquerade" json:"masquerade"`
	Ageing      int             `yaml:"ageing" json:"ageing"` // seconds
	BUMLimit    int             `yaml:"bumLimit" json:"bumLimit"`
	Flows       bool            `yaml:"flows" json:"flows"`

	CNIConfDir string `yaml:"cniConfDir" json:"cniConfDir"`
	Conflist   string `yaml:"conflist" json:"conflist"`

	LogLevel slog.Level `yaml:"logLevel" json:"logLevel"`
}

// What a node offers its peers beside VXLAN.
const (
	wireAuto  = "auto"
	wirePlain = "plain"
)

// networkConfig is a further network of the node: an L2 segment with a VNI of its own, which the key
// "network" of a conflist selects. It is a key of the file only.
type networkConfig struct {
	Name    string         `yaml:"name" json:"name"`
	VNI     uint32         `yaml:"vni" json:"vni"`
	L2      string         `yaml:"l2" json:"l2"`
	Subnets []netip.Prefix `yaml:"subnets" json:"subnets"`
	Ranges  []netip.Prefix `yaml:"ranges" json:"ranges"` // of subnets: what this node gives out
	Uplink  string         `yaml:"uplink" json:"uplink"`
}

// The kinds of a further network's L2 segment.
const (
	l2Local     = "local"
	l2Stretched = "stretched"
)

func defaults() config {
	name, _ := os.Hostname() // an empty name is refused below
	return config{
		Name: name, Mode: modeRouted, VNI: 1, Port: encap.DefaultPort, Wire: wireAuto, IO: ioAuto, PodQueues: 1,
		PortType: attach.TAP, SourceGuard: true, Masquerade: true,
		Ageing: int(vswitch.DefaultAgeing.Seconds()), BUMLimit: vswitch.DefaultBUM,
		Conflist:  "/etc/tapyard/" + conflistName,
		PeersFile: "/etc/tapyard/peers.yaml", RunDir: "/run/tapyard", StateDir: "/var/lib/tapyard",
	}
}

// text is a flag for a value that reads and writes itself as text.
type text[T any] struct {
	v     *T
	parse func(string) (T, error)
}

func (t text[T]) String() string {
	if t.v == nil {
		return ""
	}
	return fmt.Sprint(*t.v)
}
func (t text[T]) Type() string { return "value" }
func (t text[T]) Set(s string) (err error) {
	*t.v, err = t.parse(s)
	return err
}

// list is a flag that may be repeated; its first use replaces what the file said.
type list[T any] struct {
	v     *[]T
	parse func(string) (T, error)
	set   bool
}

func (l *list[T]) String() string {
	if l.v == nil || len(*l.v) == 0 {
		return ""
	}
	return fmt.Sprint(*l.v)
}
func (l *list[T]) Type() string { return "value,..." }
func (l *list[T]) Set(s string) error {
	v, err := l.parse(s)
	if err != nil {
		return err
	}
	if !l.set {
		*l.v, l.set = nil, true
	}
	*l.v = append(*l.v, v)
	return nil
}

func parseLevel(s string) (level slog.Level, err error) { return level, level.UnmarshalText([]byte(s)) }

// bind makes every key a flag.
func (c *config) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.String("config", defaultConfig, "configuration file")
	f.StringVar(&c.Name, "name", c.Name, "this node's name, as in the peers file of the others")
	f.StringVar(&c.Mode, "mode", c.Mode, "routed, or l2: a plain learning switch without gateway, tunnel and host TAP")
	f.Var(&list[netip.Prefix]{v: &c.PodSubnets, parse: control.ParsePrefix}, "pod-subnet", "this node's pod subnet, IPv4 or IPv6 (repeatable)")
	f.Var(&list[netip.Addr]{v: &c.Underlay, parse: control.ParseAddr}, "underlay", "this node's address, the first one ends the tunnels (repeatable)")
	f.StringVar(&c.PeersFile, "peers-file", c.PeersFile, "the other nodes; reloaded on change")
	f.StringVar(&c.RunDir, "run-dir", c.RunDir, "directory of cni.sock and admin.sock")
	f.StringVar(&c.StateDir, "state-dir", c.StateDir, "directory of the attachments' database")
	f.Uint32Var(&c.VNI, "vni", c.VNI, "VXLAN network identifier of the pods")
	f.Uint16Var(&c.Port, "port", c.Port, "UDP port of the tunnels")
	f.StringVar(&c.Wire, "wire", c.Wire, "auto: whole super-frames and bundles of small frames to peers that take them, VXLAN to the others; plain: VXLAN only")
	f.IntVar(&c.MTU, "mtu", c.MTU, "MTU of pods; 0: the underlay's less the encapsulation")
	f.IntVar(&c.Workers, "workers", c.Workers, "threads that move frames; 0: one per core, at most 4")
	f.StringVar(&c.IO, "io", c.IO, "how TAPs are read and written: readwrite, a system call for each frame; io_uring, one for many; auto, what is faster in a trial at start")
	f.IntVar(&c.PodQueues, "pod-queues", c.PodQueues, "queues of a new pod's TAP, at most as many as there are workers, which share its flows; each such pod costs 6 MiB of kernel memory")
	f.Var(&list[string]{v: &c.OffloadsOff, parse: parseOffload}, "offloads-off", "an offload to do without: "+strings.Join(offloadNames(), ", ")+" (repeatable)")
	f.StringVar(&c.PortType, "port-type", c.PortType, "how pods are connected: tap, or veth, read by AF_PACKET")
	f.StringVar(&c.Uplink, "uplink", c.Uplink, "in mode l2: an interface that joins the segment, such as eth1")
	f.BoolVar(&c.SourceGuard, "source-guard", c.SourceGuard, "drop what pods send from MACs and addresses that they were not given")
	f.BoolVar(&c.Masquerade, "masquerade", c.Masquerade, "have nftables masquerade what pods send to the world, and switch on forwarding")
	f.IntVar(&c.Ageing, "ageing", c.Ageing, "seconds after which a learned MAC that sends nothing is forgotten; 0: never")
	f.IntVar(&c.BUMLimit, "bum-limit", c.BUMLimit, "broadcast, unknown-destination and multicast frames a second that a port may send; 0: no limit")
	f.BoolVar(&c.Flows, "flows", c.Flows, "track TCP, UDP and echo conversations, for 'tapyard show flows'; costs some 15 ns a frame and up to 17 MiB")
	f.StringVar(&c.CNIConfDir, "cni-conf-dir", c.CNIConfDir, "where the agent puts "+conflistName+" for container runtimes when it is ready; nowhere if empty")
	f.StringVar(&c.Conflist, "conflist", c.Conflist, "what it puts there; if there is no such file, a network with the defaults")
	f.Var(text[slog.Level]{&c.LogLevel, parseLevel}, "log-level", "debug, info, warn or error")
}

// configFrom returns the configuration that command-line arguments ask for: defaults, then the file, then
// the flags.
func configFrom(args []string) (config, error) {
	first := defaults()
	cmd := &cobra.Command{}
	first.bind(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		return first, err
	}
	file := cmd.Flags().Lookup("config")
	c, err := readConfig(file.Value.String(), file.Changed)
	if err != nil {
		return c, err
	}
	cmd = &cobra.Command{}
	c.bind(cmd)
	return c, cmd.ParseFlags(args)
}

// readConfig returns the file's keys over the defaults. A missing file is an error only if it was named.
func readConfig(path string, named bool) (config, error) {
	c := defaults()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	if err := static.Decode(b, &c); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// maxMTU is the kernel's for TAPs: 65,535 bytes less the Ethernet header (drivers/net/tun.c).
const maxMTU = 65535 - 14

// check returns everything that is wrong with the configuration.
func (c *config) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("configuration: "+format, args...)) }
	if c.Name == "" {
		bad("name is empty and the machine has no hostname; set name to what the peers call this node")
	}
	if c.Port == 0 {
		bad("port 0: 1 to 65535; VXLAN's is %d", encap.DefaultPort)
	}
	if c.Wire != wireAuto && c.Wire != wirePlain {
		bad("wire %q: %s or %s", c.Wire, wireAuto, wirePlain)
	}
	if c.VNI >= 1<<24 {
		bad("vni %d: at most %d (24 bits)", c.VNI, 1<<24-1)
	}
	if c.Workers < 0 || c.Workers > vswitch.MaxWorkers {
		bad("workers %d: 0 (one per core, at most 4) to %d", c.Workers, vswitch.MaxWorkers)
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > maxMTU) {
		bad("mtu %d: 0 (follow the underlay) or 1280 (the least for IPv6) to %d (a TAP's most)", c.MTU, maxMTU)
	}
	if max := len("/run/netns") * 9; len(filepath.Join(c.RunDir, "admin.sock")) > max {
		bad("runDir %s: too long for a unix socket's path", c.RunDir)
	}
	if c.IO != ioAuto && c.IO != string(port.ReadWrite) && c.IO != string(port.IOUring) {
		bad("io %q: %s, %s or %s", c.IO, ioAuto, port.ReadWrite, port.IOUring)
	}
	if c.PodQueues < 1 || c.PodQueues > c.workers() {
		bad("podQueues %d: 1 to %d, the number of workers: another queue would wait for one of them", c.PodQueues, c.workers())
	}
	if c.PodQueues > 1 && c.PortType == attach.Veth {
		bad("podQueues %d: a pod with portType %s has one queue; use portType %s", c.PodQueues, attach.Veth, attach.TAP)
	}
	for _, name := range c.OffloadsOff {
		if _, err := parseOffload(name); err != nil {
			bad("offloadsOff: %w", err)
		}
	}
	if c.PortType != attach.TAP && c.PortType != attach.Veth {
		bad("portType %q: %s or %s", c.PortType, attach.TAP, attach.Veth)
	}
	if c.Ageing < 0 || c.Ageing > 1000000 {
		bad("ageing %d: seconds, 0 (never) or 1 to 1000000 (IEEE 802.1Q table 8-11)", c.Ageing)
	}
	if c.BUMLimit < 0 {
		bad("bumLimit %d: frames per second, or 0 for no limit", c.BUMLimit)
	}
	errs = append(errs, c.checkNetworks()...)
	switch c.Mode {
	case modeL2:
		if len(c.Networks) > 0 {
			bad("mode l2 has one network, without tunnels; remove networks or use mode %s", modeRouted)
		}
		if len(c.PodSubnets) > 0 {
			bad("mode l2 gives out no addresses; remove podSubnets or use mode %s", modeRouted)
		}
	case modeRouted:
		if c.Uplink != "" {
			bad("uplink %s: in mode %s pods are routed; use mode l2, or give the uplink to one of networks", c.Uplink, modeRouted)
		}
		errs = append(errs, c.checkRouted()...)
	default:
		bad("mode %q: %s or %s", c.Mode, modeRouted, modeL2)
	}
	return errors.Join(errs...)
}

// checkNetworks checks the further networks by themselves and against each other and the pods' own.
func (c *config) checkNetworks() (errs []error) {
	vnis := map[uint32]string{c.VNI: "the node's own network (vni)"}
	names, uplinks := map[string]bool{}, map[string]string{}
	for i := range c.Networks {
		n := &c.Networks[i]
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("configuration: networks[%d] %q: "+format, append([]any{i, n.Name}, args...)...))
		}
		if n.Name == "" {
			bad("a network needs a name; conflists select it by \"network\"")
		} else if names[n.Name] {
			bad("another network has this name; conflists select by it with \"network\"")
		}
		if other := vnis[n.VNI]; other != "" {
			bad("vni %d is that of %s already", n.VNI, other)
		}
		if n.VNI == 0 || n.VNI >= 1<<24 {
			bad("vni %d: 1 to %d (24 bits), the same on all nodes that share the segment", n.VNI, 1<<24-1)
		}
		if n.L2 != l2Local && n.L2 != l2Stretched {
			bad("l2 %q: %s, or %s (one segment with the peers)", n.L2, l2Local, l2Stretched)
		}
		if other := uplinks[n.Uplink]; n.Uplink != "" && other != "" {
			bad("uplink %s is that of %s already", n.Uplink, other)
		}
		names[n.Name], vnis[n.VNI], uplinks[n.Uplink] = true, "network "+n.Name, "network "+n.Name
		for _, err := range c.checkNetworkSubnets(n) {
			bad("%w", err)
		}
	}
	return errs
}

func (c *config) checkNetworkSubnets(n *networkConfig) (errs []error) {
	if n.L2 == l2Stretched && len(n.Ranges) != len(n.Subnets) {
		errs = append(errs, errors.New("ranges: one per subnet: what this node gives out of a segment that the peers share"))
	} else if n.Ranges != nil && len(n.Ranges) != len(n.Subnets) {
		errs = append(errs, fmt.Errorf("ranges: %d for %d subnets: one per subnet, in their order, or none", len(n.Ranges), len(n.Subnets)))
	} else {
		errs = append(errs, c.checkRanges(n)...)
	}
	families := map[bool]netip.Prefix{}
	for _, s := range n.Subnets {
		if other, twice := families[s.Addr().Is4()]; twice {
			errs = append(errs, fmt.Errorf("subnets %s and %s are of one family; a network has one of each", other, s))
		}
		families[s.Addr().Is4()] = s
		for _, p := range c.PodSubnets {
			if s.Overlaps(p) {
				errs = append(errs, fmt.Errorf("subnet %s overlaps podSubnets %s", s, p))
			}
		}
		for i := range c.Networks {
			for _, o := range c.Networks[i].Subnets {
				if other := &c.Networks[i]; other != n && s.Overlaps(o) {
					errs = append(errs, fmt.Errorf("subnet %s overlaps %s of network %q", s, o, other.Name))
				}
			}
		}
	}
	return errs
}

// checkRanges checks what this node gives out of a network's subnets: pods, and not its own addresses, which a
// LAN behind an uplink may have as well.
func (c *config) checkRanges(n *networkConfig) (errs []error) {
	for i, s := range n.Subnets {
		part := s
		if n.Ranges != nil {
			part = n.Ranges[i]
		}
		if _, err := ipam.NewRange(s, part); err != nil {
			errs = append(errs, err)
		}
		for _, a := range c.Underlay {
			if part.Contains(a) {
				errs = append(errs, fmt.Errorf("ranges: %s holds this node's own address %s, which pods must not get; give out another part of subnet %s", part, a, s))
			}
		}
	}
	return errs
}

func (c *config) checkRouted() (errs []error) {
	if len(c.PodSubnets) == 0 {
		errs = append(errs, errors.New("configuration: podSubnets is empty: mode routed needs this node's pod subnet, for example 10.244.1.0/24"))
	}
	if len(c.Underlay) == 0 {
		errs = append(errs, errors.New("configuration: underlay is empty: mode routed needs this node's address, where the tunnels end"))
	}
	families := map[bool]netip.Prefix{}
	for _, p := range c.PodSubnets {
		if p != p.Masked() {
			errs = append(errs, fmt.Errorf("configuration: podSubnets: %s has host bits set; write %s", p, p.Masked()))
		}
		if room := p.Addr().BitLen() - p.Bits(); room < 3 {
			errs = append(errs, fmt.Errorf("configuration: podSubnets: %s has no room for pods beside the gateway and the switch; use a /%d or larger", p, p.Addr().BitLen()-3))
		}
		if other, twice := families[p.Addr().Is4()]; twice {
			errs = append(errs, fmt.Errorf("configuration: podSubnets: %s and %s are of one family; a node has one of each", other, p))
		}
		families[p.Addr().Is4()] = p
		for _, a := range c.Underlay {
			if p.Contains(a) {
				errs = append(errs, fmt.Errorf("configuration: podSubnets: %s covers this node's own address %s", p, a))
			}
		}
	}
	return errs
}

// workers returns how many workers to run.
func (c *config) workers() int {
	if c.Workers > 0 {
		return c.Workers
	}
	return min(runtime.NumCPU(), 4)
}

func (c *config) node(mtu int) control.Node {
	n := control.Node{Name: c.Name, VNI: c.VNI, PodSubnets: c.PodSubnets, Underlay: c.Underlay, MTU: mtu,
		Guard: c.SourceGuard, BUM: c.BUMLimit, Flows: c.Flows}
	if c.Mode == modeRouted {
		n.RouterMAC = wire.RouterMAC(c.Name)
	}
	for _, net := range c.Networks {
		if net.L2 == l2Stretched {
			n.Stretched = append(n.Stretched, net.VNI)
		}
		for _, s := range net.Subnets {
			n.Segments = append(n.Segments, control.Segment{Network: net.Name, Prefix: s})
		}
	}
	return n
}

// overhead is what the tunnel adds to a pod's packet.
func (c *config) overhead() int { return encap.Overhead(c.Underlay[0].Is4()) }
