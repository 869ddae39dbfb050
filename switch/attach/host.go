package attach

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/handover"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// HostDevice is the TAP through which the node itself reaches pods.
const HostDevice = "tapyard0"

// HostConfig says what the host's side of the switch looks like.
type HostConfig struct {
	Subnets   []netip.Prefix // the node's pod subnets: the host has the first address of each
	RouterMAC wire.MAC       // the switch's, which the host sends everything to
	MTU       int
	Without   port.Caps       // offloads that the device does without
	Rings     *port.Rings     // may be nil
	Store     *handover.Store // may be nil
	Log       *slog.Logger
}

// Host is the node's own attachment: a TAP in the agent's network namespace that holds the gateway
// addresses, and the cluster's routes through it.
type Host struct {
	TAP *port.TAP
	MAC wire.MAC

	link netlink.Link

	mu    sync.Mutex     // one change of the routes at a time
	cfg   HostConfig     // its MTU under mu
	cidrs []netip.Prefix // what is routed through the device; under mu
}

// Gateway returns the first address of a pod subnet (.1, ::1), which the host has.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// Local returns the second one (.2, ::2), which is the switch's own.
func Local(subnet netip.Prefix) netip.Addr { return Gateway(subnet).Next() }

// OpenHost makes tapyard0 or takes over the one that is there. SetUp, which frames of pods needn't wait for, gives it its
// addresses.
func OpenHost(cfg HostConfig) (*Host, error) {
	tap, err := openHostTAP(cfg)
	if err != nil {
		return nil, err
	}
	return &Host{cfg: cfg, TAP: tap, MAC: hostMAC(cfg.RouterMAC)}, nil
}

// openHostTAP attaches to tapyard0, by the descriptor that the process before has left if it did.
func openHostTAP(cfg HostConfig) (tap *port.TAP, err error) {
	c := port.TAPConfig{Device: HostDevice, PortName: HostDevice, PortKind: "host", Without: cfg.Without, Rings: cfg.Rings}
	adopted, err := cfg.Store.Adopt(hostStoreName, func(fds []int) error {
		here, err := port.OwnNetns()
		if err == nil {
			tap, err = port.AdoptTAP(c, here, fds)
		}
		return err
	})
	if err != nil {
		cfg.Log.Warn("the kept descriptor of the host's device is of no use; it is opened anew", "err", err)
	}
	if adopted {
		return tap, nil
	}
	if _, err := netlink.LinkByName(HostDevice); isNoLink(err) {
		if err := port.CreateTAP(HostDevice); err != nil {
			return nil, err
		}
	}
	if tap, err = port.OpenTAP(c); err == nil {
		if err := cfg.Store.Keep(hostStoreName, tap.FDs()...); err != nil {
			cfg.Log.Warn("a restart of the agent will cost the host frames", "err", err)
		}
	}
	return tap, err
}

// hostMAC differs from the router MAC in the first byte's local pattern, so that the host takes nothing
// from itself for the switch's.
func hostMAC(router wire.MAC) wire.MAC {
	sum := sha256.Sum256(append([]byte(HostDevice), router[:]...))
	return wire.MAC{0x06, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// SetUp makes tapyard0 what it has to be, as it is already after a restart. It comes before the other methods.
func (h *Host) SetUp() error {
	if err := h.setUp(); err != nil {
		return fmt.Errorf("host device %s: %w", HostDevice, err)
	}
	return nil
}

func (h *Host) setUp() (err error) {
	if h.link, err = netlink.LinkByName(HostDevice); err != nil {
		return err
	}
	steps := []func() error{
		func() error { return netlink.LinkSetHardwareAddr(h.link, net.HardwareAddr(h.MAC[:])) },
		func() error { return netlink.LinkSetMTU(h.link, h.cfg.MTU) },
		func() error { return netlink.LinkSetTxQLen(h.link, txQueueLen) },
		func() error { return netlink.LinkSetUp(h.link) },
		h.setAddresses,
		h.setNeighbors,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) setAddresses() error {
	for _, subnet := range h.cfg.Subnets {
		gateway := Gateway(subnet)
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gateway, gateway.BitLen())), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrReplace(h.link, addr); err != nil {
			return fmt.Errorf("address %s: %w", gateway, err)
		}
	}
	return h.dropAddresses()
}

// dropAddresses removes the gateways of subnets that the node had before.
func (h *Host) dropAddresses() error {
	addrs, err := netlink.AddrList(h.link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, a := range addrs {
		have := prefixOf(a.IPNet).Addr()
		ours := slices.ContainsFunc(h.cfg.Subnets, func(s netip.Prefix) bool { return Gateway(s) == have })
		if ours || have.IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(h.link, &a); err != nil {
			return fmt.Errorf("delete address %s: %w", have, err)
		}
	}
	return nil
}

// setNeighbors makes .2 and ::2 the switch for good: the host never asks for it.
func (h *Host) setNeighbors() error {
	for _, subnet := range h.cfg.Subnets {
		local := Local(subnet)
		n := &netlink.Neigh{LinkIndex: h.link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: local.AsSlice(), HardwareAddr: h.cfg.RouterMAC[:]}
		if err := netlink.NeighSet(n); err != nil {
			return fmt.Errorf("neighbor %s: %w", local, err)
		}
	}
	return nil
}

// SetRoutes makes the host's routes through tapyard0 exactly those to the cluster CIDRs, in the families
// of the node's pod subnets.
func (h *Host) SetRoutes(cidrs []netip.Prefix) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cidrs = slices.Clone(cidrs)
	return h.setRoutes()
}

func (h *Host) setRoutes() error {
	want := map[netip.Prefix]bool{}
	for _, cidr := range h.cidrs {
		if err := h.addRoute(cidr); err != nil {
			return fmt.Errorf("route to %s through %s: %w", cidr, HostDevice, err)
		}
		want[cidr] = true
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := h.dropRoutes(family, want); err != nil {
			return err
		}
	}
	return nil
}

// addRoute routes via the switch's own address, with the gateway's as source: RFC 1122 would have the host
// choose the address of the interface that it thinks nearest.
func (h *Host) addRoute(cidr netip.Prefix) error {
	for _, subnet := range h.cfg.Subnets {
		gateway := Gateway(subnet)
		if gateway.Is4() == cidr.Addr().Is4() {
			return netlink.RouteReplace(&netlink.Route{
				LinkIndex: h.link.Attrs().Index, Dst: ipNet(cidr), Gw: Local(subnet).AsSlice(), Src: gateway.AsSlice(),
				Flags: int(netlink.FLAG_ONLINK), MTU: h.cfg.MTU, Protocol: unix.RTPROT_STATIC,
			})
		}
	}
	return nil // a family that this node has no pods in
}

func (h *Host) dropRoutes(family int, want map[netip.Prefix]bool) error {
	routes, err := netlink.RouteList(h.link, family)
	if err != nil {
		return fmt.Errorf("routes of %s: %w", HostDevice, err)
	}
	for _, r := range routes {
		if r.Protocol != unix.RTPROT_STATIC || r.Gw == nil || want[prefixOf(r.Dst)] {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("delete route to %s through %s: %w", r.Dst, HostDevice, err)
		}
	}
	return nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
