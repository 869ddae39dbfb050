package main

import (
	"context"
	"slices"
	"time"

	"tapyard/switch/attach"
	"tapyard/switch/port"
)

// setEgress masquerades as the state in force wants it, or not at all.
func (a *agent) setEgress() error {
	if a.host == nil {
		return nil
	}
	a.egress.Lock()
	defer a.egress.Unlock()
	return attach.SetEgress(a.egressConfig())
}

// setPorts maps the ports that pods want.
func (a *agent) setPorts() error {
	if !a.cfg.Masquerade {
		if err := attach.EnableForwarding(a.cfg.PodSubnets, a.log); err != nil {
			return err
		}
	}
	a.egress.Lock()
	defer a.egress.Unlock()
	return attach.SetPorts(a.egressConfig())
}

func (a *agent) egressConfig() attach.EgressConfig {
	s := a.controller.State()
	nodes := slices.Clone(a.cfg.Underlay)
	for _, p := range s.Peers {
		nodes = append(nodes, p.Underlay...)
	}
	return attach.EgressConfig{PodSubnets: slices.Concat(a.cfg.PodSubnets, a.foreign()), ClusterCIDRs: s.ClusterCIDRs, Nodes: nodes, TunnelPort: a.cfg.Port,
		Ports: a.pods.Mapped(), PortsOnly: !a.cfg.Masquerade}
}

// rulesInterval is how long pods can be without what the agent has in nftables, when another program flushes
// the ruleset. A look costs four questions to the kernel, less than a millisecond.
const rulesInterval = 30 * time.Second

// watchRules restores what other programs remove.
func (a *agent) watchRules(ctx context.Context) error {
	return every(ctx, rulesInterval, func() error {
		a.restoreRules()
		return nil
	})
}

// every calls f once per interval until ctx ends, or f fails.
func every(ctx context.Context, interval time.Duration, f func() error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := f(); err != nil {
				return err
			}
		}
	}
}

// removedHint is what to do about rules that were there and aren't any more.
const removedHint = "another program has removed it, perhaps by 'nft flush ruleset'; have that one flush its own tables only"

func (a *agent) restoreRules() {
	if restored, err := a.restoreEgress(); err != nil {
		a.log.Error("check the masquerading", "error", err)
	} else if restored {
		a.log.Warn("masquerading restored", "why", removedHint)
	}
	a.keepHostOff()
}

// keepHostOff guards those devices again whose guard is gone.
func (a *agent) keepHostOff() {
	restored, err := a.restoreGuards()
	if err != nil {
		a.log.Error("check the guards of devices", "error", err)
	}
	if len(restored) > 0 {
		a.log.Warn("guards restored, without which the host's stack sees what arrives at the devices", "devices", restored, "why", removedHint)
	}
}

func (a *agent) restoreEgress() (restored bool, err error) {
	if a.host == nil {
		return false, nil
	}
	a.egress.Lock()
	defer a.egress.Unlock()
	return attach.RestoreEgress(a.egressConfig())
}

func (a *agent) restoreGuards() (devices []string, err error) {
	var ports []*port.Packet
	for _, v := range a.sw.Ports() {
		if p, ok := v.Port.(*port.Packet); ok {
			ports = append(ports, p)
		}
	}
	if len(ports) == 0 {
		return nil, nil // nor need the kernel have nftables
	}
	return port.RestoreGuards(ports)
}
