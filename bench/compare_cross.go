package bench

import (
	"context"
	"slices"
)

// crossBurstScenario is one flow in bursts between nodes. On one node a TAP's ring holds the sender back; a veth has
// no such thing, and what it is given beyond what the other end takes is dropped at some socket's buffer, which costs
// CPU time that says nothing of the switch. So that everybody carries the same load without loss, the sender has 256
// frames on their way at most: as many as a UDP socket's default buffer holds of small ones (net.core.rmem_default,
// 212,992 bytes, at 768 bytes of kernel memory a frame), which is also what Open vSwitch's AF_PACKET sockets hold.
var crossBurstScenario = scenario{name: "burst", window: 256}

// crossMixedScenario is many flows of small frames of several sizes, of which no two neighbours are alike: what trains of
// equal datagrams don't help with.
var crossMixedScenario = scenario{name: "mixed", window: 256, flows: 64, sizes: []int{64, 110, 90, 150, 200, 70, 130}}

// crossPPSMetrics are account.figures across nodes. The headline is of the whole machine: half of what kernel vxlan
// does happens in the sender's and the receiver's system calls, and in softirqs.
var crossPPSMetrics = []metric{
	{name: "rate", long: "frames_per_second", unit: "frames/s"},
	{name: "switch_cpu", long: "frames_per_switch_cpu_second", unit: "frames per CPU second of both switches"},
	{name: "", long: "frames_per_machine_cpu_second", unit: "frames per CPU second of the machine, generator excluded"},
}

// crossNodePeers join two pods on two nodes.
func crossNodePeers(offloads bool) map[string]starter {
	return map[string]starter{"vxlan": startVXLAN(offloads), "ovs": startOVSNodes(offloads), "nebula": startNebula(offloads)}
}

// crossPeers are all of them.
var crossPeers = []string{"vxlan", "ovs", "nebula"}

// crossNode is sameNode for two nodes joined by a veth pair, with the pair's default offloads or none.
func (s *session) crossNode(ctx context.Context, offloads bool, peers []string, measure func(context.Context) ([]Row, error)) ([]Row, error) {
	return s.beside(ctx, startAgents(offloads, bestWire), crossNodePeers(offloads), peers, measure)
}

// crossPPS measures pps.crossnode with one scenario; variant is a suffix of its rows' base.
func crossPPS(sc scenario, variant string, offloads bool, peers ...string) func(*session, context.Context) ([]Row, error) {
	return func(s *session, ctx context.Context) ([]Row, error) {
		return s.crossNode(ctx, offloads, peers, func(ctx context.Context) ([]Row, error) {
			return s.frames(ctx, "pps.crossnode."+sc.name+variant, sc, crossPPSMetrics)
		})
	}
}

// crossTCP measures tcp.crossnode, and cpu.crossnode meanwhile.
func crossTCP(variant string, offloads bool) func(*session, context.Context) ([]Row, error) {
	metrics := slices.Clone(tcpMetrics)
	metrics[2].name, metrics[2].base = "", "cpu.crossnode"+variant
	return func(s *session, ctx context.Context) ([]Row, error) {
		return s.crossNode(ctx, offloads, crossPeers, func(ctx context.Context) ([]Row, error) {
			return s.streams(ctx, "tcp.crossnode"+variant, metrics)
		})
	}
}

// crossPlain measures tcp.crossnode.plain: without a wire of our own.
func crossPlain(variant string, offloads bool) func(*session, context.Context) ([]Row, error) {
	return func(s *session, ctx context.Context) ([]Row, error) {
		measure := func(ctx context.Context) ([]Row, error) {
			return s.streams(ctx, "tcp.crossnode.plain"+variant, tcpMetrics)
		}
		return s.beside(ctx, startAgents(offloads, plainWire), crossNodePeers(offloads), []string{"vxlan"}, measure)
	}
}
