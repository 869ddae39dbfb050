package attach_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	vswitch "tapyard/switch"
	"tapyard/switch/attach"
	"tapyard/switch/control"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// The package's own tests can't import control, which imports the package.
func init() { attach.SetNewSwitch(newSwitch) }

// served is a switch with its tables, as an agent wires it to a Manager; it has no link but pods.
type served struct {
	*control.Controller
	sw *vswitch.Switch
}

func newSwitch(cfg attach.Config) (attach.RealSwitch, error) {
	sw, err := vswitch.New(vswitch.Config{Workers: cfg.Steering.Workers(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	router := wire.MAC{0x02, 1}
	own := vswitch.Network{VNI: cfg.VNI, RouterMAC: router}
	for _, p := range cfg.Subnets {
		own.Gateways, own.Locals = append(own.Gateways, attach.Gateway(p)), append(own.Locals, attach.Local(p))
	}
	if err := sw.AddNetwork(own); err != nil {
		return nil, err
	}
	for _, n := range cfg.Networks {
		if err := sw.AddNetwork(vswitch.Network{VNI: n.VNI}); err != nil {
			return nil, err
		}
	}
	if err := sw.AddNeighbors(cfg.VNI, port.Local, router, slices.Concat(own.Gateways, own.Locals)); err != nil {
		return nil, err
	}
	node := control.Node{Name: "n1", VNI: cfg.VNI, PodSubnets: cfg.Subnets, RouterMAC: router, MTU: cfg.MTU(), Guard: true, BUM: 1000, Flows: true}
	sw.Start()
	return served{control.New(sw, node, control.Links{}), sw}, nil
}

// Traces lists what pods leave in the switch.
func (s served) Traces() string {
	var b strings.Builder
	for _, p := range s.sw.Ports() {
		if p.Port != nil {
			fmt.Fprintf(&b, "port %s\n", p.Port.Name())
		}
	}
	for _, r := range s.sw.Routes() {
		fmt.Fprintf(&b, "route %d %v\n", r.VNI, r.Prefix)
	}
	for _, e := range s.sw.FDB() {
		fmt.Fprintf(&b, "fdb %d %v\n", e.VNI, e.MAC)
	}
	for _, e := range s.sw.Neighbors() {
		if e.Port != port.Local {
			fmt.Fprintf(&b, "neighbor %d %v\n", e.VNI, e.Addr)
		}
	}
	return b.String()
}

// Stop ends the workers, and holds the ledger to its word.
func (s served) Stop() error {
	l, err := s.sw.Stop()
	if err == nil {
		err = l.Check()
	}
	return err
}
