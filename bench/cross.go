package bench

import (
	"context"
	"errors"
	"net/netip"

	"tapyard/switch/wire"
)

// agents are two nodes with the switch itself.
type agents struct {
	nodes
	each [2]agentNode
}

// The wires that two agents may speak, as keys of tapyard.yaml.
var (
	bestWire  = map[string]any{}
	plainWire = map[string]any{"wire": "plain"}
)

// startAgents is the starter of a pair of nodes whose underlay has offloads or not.
func startAgents(offloads bool, wire map[string]any) starter {
	return func(ctx context.Context, s *session) (subject, error) {
		a, err := newAgents(s, wire)
		if err != nil {
			return nil, err
		}
		if err := a.start(ctx, s, offloads); err != nil {
			return nil, errors.Join(err, a.close())
		}
		return a, nil
	}
}

func newAgents(s *session, wire map[string]any) (*agents, error) {
	a := &agents{nodes: newNodes(s, "tapyard")}
	var peers []agentPeer
	for i, name := range []string{"node-1", "node-2"} {
		dir, err := s.folder()
		if err != nil {
			return nil, err
		}
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 0}), 24).String()
		a.each[i] = agentNode{name: name, netns: a.netns[i], cpus: a.cpus[i], underlay: underAddrs[i], subnets: []string{subnet}, more: wire, dir: dir}
		peers = append(peers, agentPeer{Name: name, Underlay: underAddrs[i : i+1], PodSubnets: []string{subnet}})
	}
	a.each[0].peers, a.each[1].peers = peers, peers
	return a, nil
}

func (a *agents) start(ctx context.Context, s *session, offloads bool) error {
	if err := a.join(offloads); err != nil {
		return err
	}
	for i, p := range []*pod{&a.from, &a.to} {
		if err := a.each[i].start(ctx, s); err != nil {
			return err
		}
		if err := a.each[i].attach(ctx, p); err != nil {
			return err
		}
	}
	// Each pod sends to its own node's router what is for the other one.
	first, second := wire.RouterMAC(a.each[0].name), wire.RouterMAC(a.each[1].name)
	a.to.mac, a.from.mac = first[:], second[:]
	return acquaint(a.from, a.to)
}

func (a *agents) pids() []int { return []int{a.each[0].proc.pid(), a.each[1].proc.pid()} }

// drops are those of both switches and of the underlay between them.
func (a *agents) drops(ctx context.Context) (uint64, error) {
	first, err := a.each[0].drops(ctx)
	if err != nil {
		return 0, err
	}
	second, err := a.each[1].drops(ctx)
	if err != nil {
		return 0, err
	}
	under, err := a.deviceDrops()
	return first + second + under, err
}

func (a *agents) close() error {
	return errors.Join(a.each[0].close(), a.each[1].close(), a.nodes.close())
}
