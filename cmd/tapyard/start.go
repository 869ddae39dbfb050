package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/attach"
	"tapyard/switch/control"
	"tapyard/switch/control/static"
	"tapyard/switch/port"
)

// start brings up the switch with its links and the pods of the last run. Until its workers run, frames wait in the kernel
// or are lost, so what comes before is what forwarding needs, with few questions that wait for the kernel's RTNL lock; the
// node and its pods are put right afterwards.
func (a *agent) start(ctx context.Context) error {
	if err := a.forward(); err != nil {
		return err
	}
	return a.settle(ctx)
}

// forward has frames move.
func (a *agent) forward() error {
	go growDescriptors()
	if err := a.prepare(); err != nil {
		return err
	}
	// What is allocated from here on stays, 20 MiB and more of frames and tables, so the garbage collector would take its time,
	// three rounds of 3 ms of both cores, for nothing.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	if err := a.connect(); err != nil {
		return err
	}
	a.pods.Reopen()
	a.recall()
	a.sw.Start()
	return nil
}

// growDescriptors has the kernel make room for descriptors, early and aside. It does by itself whenever the numbers have
// reached the next power of two, and then has a process with threads wait for an RCU grace period, of 10 ms or more.
func growDescriptors() {
	const many = 1023 // a table of 8 KiB: the ports of some 900 pods
	if fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, many); err == nil {
		unix.Close(fd)
	}
}

// prepare finds out what the switch is to be, and takes what the process before has left.
func (a *agent) prepare() error {
	for _, dir := range []string{a.cfg.RunDir, a.cfg.StateDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	mtu, tunnelMTU, err := a.overlayMTU()
	if err != nil {
		return err
	}
	a.mtu.Store(int64(mtu))
	a.node = a.cfg.node(mtu)
	a.node.TunnelMTU = tunnelMTU
	if a.node.Networks, err = control.LocalNetworks(attach.HostDevice); err != nil {
		return err
	}
	if err := a.inherit(); err != nil {
		return err
	}
	a.proven = readProven(a.cfg.RunDir, a.store.Inherits())
	a.chooseOffloads()
	a.chooseEngine()
	a.steering = port.NewSteering(a.cfg.workers())
	// Before anything on the node is touched: the records exclude a second agent that is started by mistake.
	return a.openPods()
}

// connect makes the switch with its networks and links.
func (a *agent) connect() (err error) {
	if a.sw, err = vswitch.New(vswitch.Config{Workers: a.cfg.workers(), Rings: a.rings, Log: a.log,
		Ageing: time.Duration(a.cfg.Ageing) * time.Second}); err != nil {
		return err
	}
	a.closers = append(a.closers, a.handOver, a.stopSwitch)
	own, err := a.addNetworks()
	if err != nil {
		return err
	}
	var links control.Links
	if a.cfg.Mode == modeRouted {
		if links, err = a.link(own); err != nil {
			return err
		}
	}
	a.controller = control.New(a.sw, a.node, links)
	if a.cfg.Mode == modeRouted {
		return a.loadPeers()
	}
	return nil
}

// settle gives the node and the pods what they have lost while no agent ran, or never had: in a restart all is there.
func (a *agent) settle(ctx context.Context) error {
	a.keepHostOff()
	if a.host != nil {
		// tapyard0 is ours, so the node is: an agent with another stateDir has ended before.
		if a.cfg.Masquerade {
			if err := attach.EnableForwarding(a.cfg.PodSubnets, a.log); err != nil {
				return err
			}
		}
		if err := a.host.SetUp(); err != nil {
			return err
		}
	}
	if err := a.pods.Restore(ctx); err != nil {
		return err
	}
	a.settled = true
	return a.followForeign()
}

// addNetworks makes the node's own network, which it returns, and the further ones, with their uplinks.
func (a *agent) addNetworks() (own vswitch.Network, err error) {
	own = vswitch.Network{VNI: a.cfg.VNI, RouterMAC: a.node.RouterMAC}
	for _, p := range a.cfg.PodSubnets {
		own.Gateways = append(own.Gateways, attach.Gateway(p))
		own.Locals = append(own.Locals, attach.Local(p))
	}
	if err := a.sw.AddNetwork(own); err != nil {
		return own, err
	}
	if err := a.join(a.cfg.Uplink, a.cfg.VNI); err != nil {
		return own, err
	}
	for _, n := range a.cfg.Networks {
		err := a.sw.AddNetwork(vswitch.Network{VNI: n.VNI, Stretched: n.L2 == l2Stretched})
		if err = errors.Join(err, a.join(n.Uplink, n.VNI)); err != nil {
			return own, fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	return own, nil
}

// A whole segment's stations share an uplink's port, so it has their number and so many times a pod's floods.
const uplinkKind, uplinkShare = "uplink", 10

// join makes an interface of the node part of a network's segment, unless its name is empty.
func (a *agent) join(uplink string, vni uint32) error {
	if uplink == "" {
		return nil
	}
	p, err := a.openUplink(port.PacketConfig{Device: uplink, PortName: uplink, PortKind: uplinkKind, Uplink: true})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, p.Close)
	a.uplinks = append(a.uplinks, p)
	_, err = a.sw.Attach(p, vswitch.PortConfig{Role: vswitch.RoleAccess, Segment: true, VNI: vni, BUM: uplinkShare * a.cfg.BUMLimit})
	return err
}

// overlayMTU returns the MTU of pods, which is the configured one or what the underlay leaves, and that of
// tunnels, which is always the latter.
func (a *agent) overlayMTU() (pods, tunnel int, err error) {
	if a.cfg.Mode == modeL2 {
		return cmp.Or(a.cfg.MTU, localMTU(a.cfg.Uplink)), 0, nil // Ethernet's, IEEE 802.3
	}
	underlay, err := attach.MTUOf(a.cfg.Underlay[0])
	if err != nil {
		return 0, 0, err
	}
	tunnel = underlay - a.cfg.overhead()
	return cmp.Or(a.cfg.MTU, tunnel), tunnel, nil
}

// link attaches the host and the tunnel, and makes the gateway known to pods.
func (a *agent) link(network vswitch.Network) (links control.Links, err error) {
	a.host, err = attach.OpenHost(attach.HostConfig{Subnets: a.cfg.PodSubnets, RouterMAC: a.node.RouterMAC, MTU: a.node.MTU,
		Without: a.without.taps, Rings: a.rings, Store: a.store, Log: a.log})
	if err != nil {
		return links, err
	}
	a.closers = append(a.closers, a.host.TAP.Close)
	a.vteps = new(encap.VTEPTable)
	links.HostMAC, links.VTEPs = a.host.MAC, a.vteps
	if links.Host, err = a.sw.Attach(a.host.TAP, vswitch.PortConfig{Role: vswitch.RoleHost, VNI: a.cfg.VNI}); err != nil {
		return links, err
	}
	tunnel, err := a.openTunnel()
	if err != nil {
		return links, err
	}
	a.closers = append(a.closers, tunnel.Close)
	if links.Tunnel, err = a.sw.Attach(tunnel, vswitch.PortConfig{Role: vswitch.RoleTunnel, BUM: a.cfg.BUMLimit}); err != nil {
		return links, err
	}
	own := append(append([]netip.Addr(nil), network.Gateways...), network.Locals...)
	return links, a.sw.AddNeighbors(a.cfg.VNI, port.Local, a.node.RouterMAC, own)
}

// loadPeers applies the peers file; a node may start without one and wait for it.
func (a *agent) loadPeers() error {
	a.peers = &static.File{Path: a.cfg.PeersFile}
	state, err := a.peers.Load()
	if errors.Is(err, os.ErrNotExist) {
		a.log.Warn("no peers file yet: this node reaches its own pods only", "path", a.cfg.PeersFile)
		return a.controller.Apply(control.State{})
	}
	if err != nil {
		return err
	}
	if err := a.controller.Apply(state); err != nil {
		return fmt.Errorf("peers file %s: %w", a.cfg.PeersFile, err)
	}
	return nil
}
