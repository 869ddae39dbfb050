package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The row of many flows: interleavedFlows take turns frame by frame, so that no two neighbours can be merged,
// while the flow table holds liveFlows.
const (
	interleavedFlows = 1000
	liveFlows        = 100_000

	// flowOpeners are the pods that open them: the switch tracks no more than 32,768 of one pod.
	flowOpeners = 4

	// firstFlowPort is the source port of the first flow, the others count up from it. A flow needs a port of
	// its own, since a pod may send from its own address alone.
	firstFlowPort = 10_000
	maxFlows      = 1<<16 - firstFlowPort
)

var flowScenario = scenario{name: "flows", flows: interleavedFlows}

// flowAgent is the switch with connection tracking, and pods that open flows beside the two that are measured.
type flowAgent struct {
	*agent
	openers []pod // the measured one first
}

// flows measures frames of interleavedFlows flows between two pods on one node, with nothing to coalesce.
func (s *session) flows(ctx context.Context) ([]Row, error) { return s.pps(ctx, flowScenario) }

// compareFlows is the group of rows of `bench compare`.
func (s *session) compareFlows(ctx context.Context) ([]Row, error) {
	return s.beside(ctx, startFlowAgent, sameNodePeers, []string{"raw", "ovs"}, s.flows)
}

func startFlowAgent(ctx context.Context, s *session) (subject, error) {
	a, err := newAgent(s)
	if err != nil {
		return nil, err
	}
	a.more = map[string]any{"flows": true}
	f := &flowAgent{agent: a}
	if err := f.start(ctx, s); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

func (f *flowAgent) start(ctx context.Context, s *session) error {
	if err := f.agent.start(ctx, s); err != nil {
		return err
	}
	f.openers = []pod{f.from}
	for i := 1; i < flowOpeners; i++ {
		f.openers = append(f.openers, pod{netns: fmt.Sprintf("%spod-o%d", benchPrefix, i), cpus: s.load})
		if err := f.attach(ctx, &f.openers[i]); err != nil {
			return err
		}
	}
	return nil
}

func (f *flowAgent) close() error {
	err := f.agent.close()
	for _, p := range f.openers {
		err = errors.Join(err, deleteNetns(p.netns))
	}
	return err
}

// sentBy is a subject with another pod that sends.
type sentBy struct {
	subject
	pod
}

func (f sentBy) pods() (sender, receiver pod) {
	_, receiver = f.subject.pods()
	return f.pod, receiver
}

// prepareRun sends a frame on each of liveFlows flows, the measured ones among them, and asks the switch whether it
// tracks them all. They are forgotten after 30 s, so that it is done before each run.
func (f *flowAgent) prepareRun(ctx context.Context, s *session) error {
	const each = liveFlows / flowOpeners
	// A fifth more than once around: the generator stops by the clock.
	const long = each * time.Second / pacedRate * 6 / 5
	for _, p := range f.openers {
		if _, err := s.offer(ctx, sentBy{f, p}, scenario{rate: pacedRate, flows: each}, long); err != nil {
			return fmt.Errorf("open %d flows from %s: %w", each, p.netns, err)
		}
	}
	var table struct {
		Live int `json:"live"`
	}
	if err := agentGet(ctx, f.socket("admin.sock"), "/v1/flows?limit=1", &table); err != nil {
		return err
	}
	if table.Live < liveFlows {
		return &imbalance{fmt.Sprintf("the switch tracks %d flows of %d", table.Live, liveFlows)}
	}
	return nil
}
