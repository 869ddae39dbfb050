package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/control"
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
	MTU        int            `yaml:"mtu" json:"mtu"`
	Workers    int            `yaml:"workers" json:"workers"`
	LogLevel   slog.Level     `yaml:"logLevel" json:"logLevel"`
}

func defaults() config {
	name, _ := os.Hostname() // an empty name is refused below
	return config{
		Name: name, Mode: modeRouted, VNI: 1, Port: encap.DefaultPort,
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
	f.Var(&list[netip.Prefix]{v: &c.PodSubnets, parse: netip.ParsePrefix}, "pod-subnet", "this node's pod subnet, IPv4 or IPv6 (repeatable)")
	f.Var(&list[netip.Addr]{v: &c.Underlay, parse: netip.ParseAddr}, "underlay", "this node's address, the first one ends the tunnels (repeatable)")
	f.StringVar(&c.PeersFile, "peers-file", c.PeersFile, "the other nodes; reloaded on change")
	f.StringVar(&c.RunDir, "run-dir", c.RunDir, "directory of cni.sock and admin.sock")
	f.StringVar(&c.StateDir, "state-dir", c.StateDir, "directory of the attachments' database")
	f.Uint32Var(&c.VNI, "vni", c.VNI, "VXLAN network identifier of the pods")
	f.Uint16Var(&c.Port, "port", c.Port, "UDP port of the tunnels")
	f.IntVar(&c.MTU, "mtu", c.MTU, "MTU of pods; 0: the underlay's less the encapsulation")
	f.IntVar(&c.Workers, "workers", c.Workers, "threads that move frames; 0: one per core, at most 4")
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
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

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
	if c.VNI >= 1<<24 {
		bad("vni %d: at most %d (24 bits)", c.VNI, 1<<24-1)
	}
	if c.Workers < 0 || c.Workers > vswitch.MaxWorkers {
		bad("workers %d: 0 (one per core, at most 4) to %d", c.Workers, vswitch.MaxWorkers)
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		bad("mtu %d: 0 (follow the underlay) or 1280 (the least for IPv6) to 65535", c.MTU)
	}
	if max := len("/run/netns") * 9; len(filepath.Join(c.RunDir, "admin.sock")) > max {
		bad("runDir %s: too long for a unix socket's path", c.RunDir)
	}
	switch c.Mode {
	case modeL2:
		if len(c.PodSubnets) > 0 {
			bad("mode l2 gives out no addresses; remove podSubnets or use mode %s", modeRouted)
		}
	case modeRouted:
		errs = append(errs, c.checkRouted()...)
	default:
		bad("mode %q: %s or %s", c.Mode, modeRouted, modeL2)
	}
	return errors.Join(errs...)
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
	n := control.Node{Name: c.Name, VNI: c.VNI, PodSubnets: c.PodSubnets, Underlay: c.Underlay, MTU: mtu}
	if c.Mode == modeRouted {
		n.RouterMAC = wire.RouterMAC(c.Name)
	}
	return n
}

// overhead is what the tunnel adds to a pod's packet.
func (c *config) overhead() int { return encap.Overhead(c.Underlay[0].Is4()) }
