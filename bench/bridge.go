package bench

import (
	"context"
	"errors"
)

// bridge is what Linux does by itself: two pods' veth pairs in a bridge.
type bridge struct {
	netns    string
	from, to pod
}

func startBridge(_ context.Context, s *session) (subject, error) {
	b := &bridge{netns: benchPrefix + "bridge"}
	b.from, b.to = podPair(s, "bridge")
	if err := b.start(); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bridge) start() error {
	if err := makeNetns(b.netns); err != nil {
		return err
	}
	err := inNetns(b.netns, func() error {
		return errors.Join(addVethPod(&b.from, "pod-a"), addVethPod(&b.to, "pod-b"), addBridge("br0", "pod-a", "pod-b"))
	})
	if err != nil {
		return err
	}
	return acquaint(b.from, b.to)
}

func (b *bridge) name() string                          { return "bridge" }
func (b *bridge) pods() (from, to pod)                  { return b.from, b.to }
func (b *bridge) pids() []int                           { return nil }
func (b *bridge) drops(context.Context) (uint64, error) { return deviceDrops(b.netns) }
func (b *bridge) close() error                          { return deleteNetns(b.from.netns, b.to.netns, b.netns) }
