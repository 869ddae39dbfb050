package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"

	"tapyard/switch/port"
)

// choice is a key of the agent's configuration that payloads must not notice, with its values.
type choice struct {
	key    string
	values []any
	names  []string
}

var (
	engines  = choice{"io", []any{string(port.ReadWrite), string(port.IOUring)}, []string{string(port.ReadWrite), string(port.IOUring)}}
	offloads = choice{"offloadsOff", []any{[]string{}, []string{"all"}}, []string{"offloads", "none"}}
	wires    = choice{"wire", []any{"auto", "plain"}, []string{"auto", "plain"}}
)

// combination is one value of each choice.
type combination struct {
	name   string
	config map[string]any
}

// combine returns all combinations of the choices.
func combine(choices ...choice) []combination {
	all := []combination{{config: map[string]any{}}}
	for _, c := range choices {
		var next []combination
		for _, have := range all {
			for i, v := range c.values {
				config := maps.Clone(have.config)
				config[c.key] = v
				next = append(next, combination{strings.TrimPrefix(have.name+"."+c.names[i], "."), config})
			}
		}
		all = next
	}
	return all
}

func integrityCommand() *cobra.Command {
	return benchmarkCommand("integrity", "Whether payloads arrive as they were, with every engine, offload and wire on and off",
		func(ctx context.Context, progress io.Writer) (*Report, error) {
			return Integrity(ctx, Config{Progress: progress})
		})
}

// Integrity sends messages of 1 to 65,000 bytes by TCP and UDP, IPv4 and IPv6, both ways between two pods, and compares
// digests: on one node and across two with the underlay's offloads on and off, with every combination of engine,
// offloads and wire.
func Integrity(ctx context.Context, cfg Config) (*Report, error) {
	return runBenchmark(ctx, cfg, func(ctx context.Context, s *session) ([]Row, error) { return s.integrity(ctx) })
}

func (s *session) integrity(ctx context.Context) (rows []Row, err error) {
	engines := s.engines()
	for _, c := range combine(engines, offloads) {
		row, err := s.integrityOf(ctx, "integrity.samenode."+c.name, func() (integritySubject, error) { return s.integrityAgent(ctx, c.config) })
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	for i, under := range []string{"", ".nooffload"} {
		for _, c := range combine(engines, offloads, wires) {
			row, err := s.integrityOf(ctx, "integrity.crossnode"+under+"."+c.name, func() (integritySubject, error) { return s.integrityAgents(ctx, c.config, i == 0) })
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// engines is the choice of those that this machine has.
func (s *session) engines() choice {
	rings, err := port.OpenRings(1)
	if err != nil {
		s.say("integrity without io_uring: %v", err)
		return choice{engines.key, engines.values[:1], engines.names[:1]}
	}
	_ = rings.Close() // it was never used
	return engines
}

// integritySubject is two pods joined by the switch.
type integritySubject interface {
	pods() (from, to pod)
	close() error
}

func (s *session) integrityAgent(ctx context.Context, config map[string]any) (integritySubject, error) {
	a, err := newAgent(s)
	if err != nil {
		return nil, err
	}
	a.subnets, a.more = append(a.subnets, integritySubnet(1)), config
	if err := a.start(ctx, s); err != nil {
		return a, err
	}
	return a, a.expectEngine(ctx)
}

func (s *session) integrityAgents(ctx context.Context, config map[string]any, offloads bool) (integritySubject, error) {
	a, err := newAgents(s, config)
	if err != nil {
		return nil, err
	}
	for i := range a.each {
		a.each[i].subnets = append(a.each[i].subnets, integritySubnet(i+1))
		a.each[0].peers[i].PodSubnets = a.each[i].subnets // both have the same slice
	}
	if err := a.start(ctx, s, offloads); err != nil {
		return a, err
	}
	return a, errors.Join(a.each[0].expectEngine(ctx), a.each[1].expectEngine(ctx))
}

// expectEngine says if the agent does without the engine that it was told to have: a row of it would be about another one.
func (n *agentNode) expectEngine(ctx context.Context) error {
	var ports []struct{ Port, Engine string }
	if err := agentGet(ctx, n.socket("admin.sock"), "/v1/offloads", &ports); err != nil {
		return err
	}
	for _, p := range ports {
		if p.Engine != "" && p.Engine != n.more[engines.key] {
			return fmt.Errorf("%s is read and written by %s, although %s is %v", p.Port, p.Engine, engines.key, n.more[engines.key])
		}
	}
	return nil
}

func integritySubnet(node int) string { return fmt.Sprintf("fd00:10:244:%d::/64", node) }

// integrityOf brings a subject up, sends everything through it and takes it down. That bytes arrived changed is a row that
// doesn't hold, and said so; that they didn't arrive is an error.
func (s *session) integrityOf(ctx context.Context, name string, start func() (integritySubject, error)) (row Row, err error) {
	began := time.Now()
	sub, err := start()
	if sub != nil {
		defer func() { err = errors.Join(err, sub.close()) }()
	}
	if err != nil {
		return row, fmt.Errorf("%s: %w", name, err)
	}
	from, to := sub.pods()
	pairs, err := integrityPairs(from, to)
	if err != nil {
		return row, fmt.Errorf("%s: %w", name, err)
	}
	equal, sizes := 0, integritySizes()
	var fault error
	for _, p := range pairs {
		for _, send := range []func(*rand.ChaCha8, []int) (int, error){p.stream, p.datagrams} {
			if ctx.Err() != nil {
				return row, ctx.Err()
			}
			n, err := send(rand.NewChaCha8([32]byte{1}), sizes)
			equal, fault = equal+n, errors.Join(fault, err)
		}
	}
	row = Row{Name: name, Value: float64(equal), Low: float64(equal), High: float64(equal), Unit: "messages equal", Holds: new(fault == nil)}
	if fault != nil {
		s.say("%s: %v", name, fault)
		return row, nil
	}
	s.say("%s: %d messages equal, %.1f s", name, equal, time.Since(began).Seconds())
	return row, nil
}

// integrityPairs are both directions in both families.
func integrityPairs(from, to pod) (pairs []integrityPair, err error) {
	var ends [2][]integrityEnd // by family
	for i, p := range []pod{from, to} {
		if ends[i], err = integrityEnds(p); err != nil {
			return nil, err
		}
	}
	for f := range ends[0] {
		pairs = append(pairs, integrityPair{ends[0][f], ends[1][f]}, integrityPair{ends[1][f], ends[0][f]})
	}
	return pairs, nil
}

// integrityEnds are the pod's addresses, IPv4 first.
func integrityEnds(p pod) (ends []integrityEnd, err error) {
	err = inNetns(p.netns, func() error {
		link, err := netlink.LinkByName(podDevice)
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", podDevice, p.netns, err)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			addrs, err := netlink.AddrList(link, family)
			if err != nil {
				return fmt.Errorf("list addresses of %s: %w", p.netns, err)
			}
			i := slices.IndexFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsGlobalUnicast() })
			if i < 0 {
				return fmt.Errorf("%s has no address of family %d", p.netns, family)
			}
			addr, _ := netip.AddrFromSlice(addrs[i].IP)
			ends = append(ends, integrityEnd{p.netns, addr.Unmap()})
		}
		return nil
	})
	return ends, err
}
