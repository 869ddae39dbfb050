package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/wire"
)

// scaleSize is how much a node of the row `scale` has to know.
type scaleSize struct {
	name                string
	pods, peers, routes int // routes to peers' subnets, shared out evenly
}

var (
	scaleLarge = scaleSize{"large", 250, 5000, 100_000} // 250 pods are what a /24 has room for
	scaleSmall = scaleSize{"small", 2, 2, 2}
)

const (
	// scaleTime is of one pair of pods and one way; the next pair finds the caches without it.
	scaleTime = 500 * time.Millisecond

	// scalePairs take turns within a run, half of them switched, half of them routed.
	scalePairs = 4

	// scaleName is the node's, from which its router MAC follows.
	scaleName = "scale"

	// scaleCluster has room for the peers' subnets.
	scaleCluster = "10.0.0.0/8"
)

var scaleMetrics = []metric{
	{name: "", long: "frames_per_switch_cpu_second", unit: "frames per CPU second of the switch"},
	{name: "rate", long: "frames_per_second", unit: "frames/s"},
}

// scaleNode is a node with many pods, of which two at a time have traffic.
type scaleNode struct {
	agentNode
	size scaleSize
	all  []pod
	turn int
}

// Scale measures what a frame costs on a node that knows much, beside one that knows next to nothing.
func Scale(ctx context.Context, cfg Config) (*Report, error) {
	return runBenchmark(ctx, cfg, func(ctx context.Context, s *session) ([]Row, error) { return s.scale(ctx) })
}

// scale is also the group of rows of `bench compare`.
func (s *session) scale(ctx context.Context) (rows []Row, err error) {
	return s.scaled(ctx, scaleLarge, scaleSmall)
}

// scaled compares nodes of two sizes; the row that compares them is `scale`, above 1 if the larger is the cheaper.
func (s *session) scaled(ctx context.Context, large, small scaleSize) (rows []Row, err error) {
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(ctx, []starter{large.start, small.start}); err != nil {
		return nil, err
	}
	rows, err = s.interleave(ctx, "scale", ofFrames(scaleMetrics, nil), func(ctx context.Context, sub subject) (values, error) {
		return s.pairs(ctx, sub.(*scaleNode))
	})
	for i := range rows {
		if rows[i].Name == "scale."+small.name {
			rows[i].Name = "scale"
		}
	}
	return rows, err
}

// pairs has one pair of pods after the other send as fast as it can, to the other pod's MAC and to the router's.
func (s *session) pairs(ctx context.Context, n *scaleNode) (values, error) {
	var frames, cpu, took float64
	for i := range scalePairs {
		sc := scenario{name: "burst"}
		if i%2 == 1 {
			sc.via = wire.RouterMAC(scaleName).String()
		}
		a, err := s.offer(ctx, n, sc, scaleTime)
		if err != nil {
			return nil, err
		}
		if err := a.check(); err != nil {
			return nil, err
		}
		frames += float64(a.sink.Received)
		cpu += a.cpu.switchSeconds()
		took += a.sink.Took.Seconds()
		n.turn++
	}
	return values{frames / cpu, frames / took}, nil
}

// start is a starter.
func (z scaleSize) start(ctx context.Context, s *session) (subject, error) {
	dir, err := s.folder()
	if err != nil {
		return nil, err
	}
	n := &scaleNode{size: z, agentNode: agentNode{
		name: scaleName, netns: benchPrefix + z.name, cpus: s.forward, underlay: agentUnderlay,
		subnets: []string{podPrefix}, peers: scalePeers(z.peers, z.routes), cluster: []string{scaleCluster}, dir: dir,
	}}
	if err := n.start(ctx, s); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *scaleNode) start(ctx context.Context, s *session) error {
	if err := makeNetns(n.netns); err != nil {
		return err
	}
	if err := inNetns(n.netns, addUnderlay); err != nil {
		return err
	}
	if err := n.agentNode.start(ctx, s); err != nil {
		return err
	}
	for i := range n.size.pods {
		p := pod{netns: fmt.Sprintf("%s%s-%d", benchPrefix, n.size.name, i), cpus: s.load}
		n.all = append(n.all, p)
		if err := n.attach(ctx, &n.all[i]); err != nil {
			return err
		}
		if done := i + 1; done%50 == 0 {
			s.say("scale: %d of %d pods attached", done, n.size.pods)
		}
	}
	return nil
}

// scalePeers shares out so many subnets, every second /26 of 10.0.0.0/8 beside the cluster's own /16, so that none
// merges with its neighbour.
func scalePeers(peers, routes int) []agentPeer {
	const subnets = 10 << 24          // 10.0.0.0
	const underlay = 198<<24 | 18<<16 // 198.18.0.0/15, which RFC 2544 keeps for benchmarks
	own := netip.MustParsePrefix("10.244.0.0/16")
	first := netip.MustParsePrefix(scaleCluster).Addr().As4()
	all := make([]agentPeer, peers)
	for i := range all {
		all[i].Name = fmt.Sprintf("peer-%d", i)
		all[i].Underlay = []string{addr4(underlay + 1 + uint32(i)).String()}
	}
	for i, at := 0, binary.BigEndian.Uint32(first[:]); i < routes; at += 2 << 6 {
		prefix := netip.PrefixFrom(addr4(at), 26)
		if own.Overlaps(prefix) {
			continue
		}
		p := &all[i%peers]
		p.PodSubnets = append(p.PodSubnets, prefix.String())
		i++
	}
	return all
}

func addr4(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, v)))
}

func (n *scaleNode) name() string { return n.size.name }
func (n *scaleNode) pids() []int  { return []int{n.proc.pid()} }

// pods are the pair whose turn it is.
func (n *scaleNode) pods() (from, to pod) {
	i := 2 * n.turn % len(n.all)
	return n.all[i], n.all[i+1]
}

// close stops the agent, which checks its ledger. Pods go with their namespaces: detaching 250 of them would take
// as long as attaching them.
func (n *scaleNode) close() error {
	var err error
	if n.proc != nil {
		err = n.proc.stop(unix.SIGTERM)
	}
	names := []string{n.netns}
	for _, p := range n.all {
		names = append(names, p.netns)
	}
	return errors.Join(err, deleteNetns(names...))
}
