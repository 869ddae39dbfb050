package attach

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	"tapyard/cniplugin/podapi"
)

var errInjected = errors.New("injected")

// stepsOf are the steps of an ADD and a DEL of a plain pod, in their order.
func stepsOf(t *testing.T, portType string) (add, del []string) {
	t.Helper()
	return stepsOfKind(t, kind{portType, 1, false})
}

func stepsOfKind(t *testing.T, k kind) (add, del []string) {
	t.Helper()
	var all []string
	n, ns := newNodeFor(t, k, func(c *Config) {
		c.step = func(name string) error { all = append(all, name); return nil }
	}), nstest.New(t)
	n.addAsked(t, ns, "c1")
	add, all = all, nil
	n.del(t, reqFor(ns, "c1"))
	if len(add) < 9 || len(all) < 5 || add[len(add)-1] != "ADD: answer" {
		t.Fatalf("steps of ADD %q and DEL %q", add, all)
	}
	return add, all
}

// failAt has the step fail; "" is none.
func (n *node) failAt(step string) {
	n.cfg.step = func(name string) error {
		if name == step {
			return errInjected
		}
		return nil
	}
	n.start.step = nil
}

// A failure in any step of an ADD leaves nothing, and one in any step of a DEL nothing that the next DEL, or the
// next start and a DEL, does not remove.
func TestFailureAtEachStep(t *testing.T) { eachKind(t, testFailureAtEachStep) }

func testFailureAtEachStep(t *testing.T, k kind) {
	add, del := stepsOfKind(t, k)
	n, ns := newNodeFor(t, k, nil), nstest.New(t)
	descriptors := openDescriptors(t)
	for _, step := range add[:len(add)-1] {
		n.failAt(step)
		if _, err := n.Add(t.Context(), n.request(t, ns, "c1")); !errors.Is(err, errInjected) {
			t.Errorf("%s: %v", step, err)
		}
		n.assertNothing(t, ns)
	}
	for i, step := range del[:len(del)-1] {
		for _, next := range some(k, i, []string{"DEL", "GC", "restart", "sweep"}) {
			n.failAt("")
			n.addAsked(t, ns, "c1")
			n.failAt(step)
			if err := n.Del(t.Context(), Request{ContainerID: "c1", IfName: "eth0", NetnsFD: -1}); !errors.Is(err, errInjected) {
				t.Errorf("%s: %v", step, err)
			}
			n.failAt("")
			n.afterFailedDel(t, next, ns)
			n.del(t, reqFor(ns, "c1"))
			n.assertNothing(t, ns)
			if t.Failed() {
				t.Fatalf("at the step %q, followed by %s", step, next)
			}
		}
	}
	if n.restart(t); k.whole {
		return // its switch has others than the one before
	}
	if now := openDescriptors(t); now > descriptors {
		t.Errorf("%d descriptors were open, now %d are", descriptors, now)
	}
}

// afterFailedDel is what may come before the runtime's next DEL.
func (n *node) afterFailedDel(t *testing.T, next string, ns *nstest.NS) {
	t.Helper()
	switch next {
	case "GC":
		if err := n.GC(t.Context(), n.request(t, ns, "c1").Conf.Name, nil); err != nil {
			t.Error(err)
		}
		n.assertNothing(t, ns)
	case "restart":
		n.restart(t)
	case "sweep":
		n.restart(t)
		if err := n.Reconcile(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// endings are how what a kill of the agent has left may be taken away, in the words of killedAgent.end.
var endings = []string{"DEL", "GC", "a DEL that finds no agent", "a start without the pod"}

// An agent killed at any step of an ADD or DEL: the next one has the pod or nothing of it, and whatever the runtime
// does then leaves nothing.
func TestAgentKilledAtEachStep(t *testing.T) { eachKind(t, testAgentKilledAtEachStep) }

func testAgentKilledAtEachStep(t *testing.T, k kind) {
	add, del := stepsOfKind(t, k)
	steps := append(add, del...)
	if testing.Short() {
		rng := seed.Rand(t)
		rng.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		steps = steps[:3]
	}
	v := &killedAgent{kind: k, dir: t.TempDir(), given: t.TempDir()}
	v.conf = k.conf(t, v.given, "")
	for i, step := range steps {
		for _, ending := range some(k, i, endings) {
			v.kill(t, step)
			v.end(t, ending)
			if t.Failed() {
				t.Fatalf("killed at the step %q, followed by %s", step, ending)
			}
		}
	}
}

// killedAgent is one with a pod, again and again.
type killedAgent struct {
	kind       kind
	dir, given string // of the agent's state, and of host-local's
	conf       json.RawMessage
	ns         *nstest.NS // the pod's
}

// kill has an agent end at the step.
func (v *killedAgent) kill(t *testing.T, step string) {
	t.Helper()
	v.ns = nstest.New(t)
	t.Setenv(stepEnv, step)
	agent := startAgent(t, v.dir, v.kind.String())
	t.Setenv(stepEnv, "")
	resp, err := callWith(v.dir, "ADD", "c1", v.ns, v.conf)
	if strings.HasPrefix(step, "DEL") {
		if err != nil || resp.Error != nil {
			t.Fatalf("ADD before %s: %v, %v", step, err, resp.Error)
		}
		_, err = call(v.dir, "DEL", "c1", nil)
	}
	if !errors.Is(err, podapi.ErrAgentDown) {
		t.Fatalf("%s: the agent answers %v", step, err)
	}
	agent.Wait()
}

// end starts the next agent, and does what the ending says before or after.
func (v *killedAgent) end(t *testing.T, ending string) {
	t.Helper()
	socket := filepath.Join(v.dir, "cni.sock")
	before := ending == "a start without the pod"
	switch ending {
	case "a DEL that finds no agent":
		before = true
		if out, err := pluginWith("DEL", v.ns, v.kind.conf(t, v.given, socket)).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("DEL without an agent: %v: %s", err, out)
		}
	case "a start without the pod":
		vanish(t, v.ns)
	}
	agent := startAgent(t, v.dir, v.kind.String())
	if !before {
		v.assertWholeOrNothing(t)
		mustAnswer(t, v.dir, ending, nil, v.conf)
	}
	if ending != "a start without the pod" {
		assertEmpty(t, v.ns)
	}
	if rows := auditedBy(t, v.dir); len(rows) > 0 {
		t.Errorf("left: %+v", rows)
	}
	if traces := string(mustAnswer(t, v.dir, "TRACES", nil, v.conf)); traces != `""` {
		t.Errorf("the switch has %s", traces)
	}
	assertOwnDevices(t, "lo")
	assertGiven(t, v.given, 0)
	assertNoTombstones(t, socket)
	agent.Process.Kill()
	agent.Wait()
	assertNoRecords(t, v.dir)
}

// assertWholeOrNothing compares what is recorded with the pod's device and with all else that the kind asks for.
func (v *killedAgent) assertWholeOrNothing(t *testing.T) {
	t.Helper()
	rows := auditedBy(t, v.dir)
	attached := len(rows) > 0
	soon(func() bool { return attached || len(linksOf(t, v.ns)) == 1 })
	if links := linksOf(t, v.ns); attached != slices.Contains(links["eth0"].Flags, "LOWER_UP") || !attached && len(links) != 1 {
		t.Errorf("recorded %+v, devices %v", rows, links)
	}
	if !v.kind.whole {
		return
	}
	if assertPorts(t, attached); !attached {
		assertGiven(t, v.given, 0)
	}
	if traces := string(mustAnswer(t, v.dir, "TRACES", nil, v.conf)); strings.Contains(traces, "port c1") != attached {
		t.Errorf("recorded %+v, the switch has %s", rows, traces)
	}
}

// counted tells when no request is under way.
type counted struct {
	node *node
	sync.WaitGroup
}

func (c *counted) Handle(ctx context.Context, req *podapi.Request, netns int) (json.RawMessage, error) {
	defer c.Done()
	return c.node.Handle(ctx, req, netns)
}

// A plugin killed while the agent is at any step: its runtime, which knows of no end, sends DEL, or some time GC; or the
// agent is started anew and the pod gone.
func TestPluginKilledAtEachStep(t *testing.T) { eachKind(t, testPluginKilledAtEachStep) }

func testPluginKilledAtEachStep(t *testing.T, k kind) {
	add, del := stepsOfKind(t, k)
	n := newNodeFor(t, k, nil)
	handler := &counted{node: n}
	socket := filepath.Join(t.TempDir(), "cni.sock")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- listenAndServe(ctx, socket, &podapi.Server{Handler: handler, Log: n.cfg.Log}) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	for !exists(socket) {
		time.Sleep(time.Millisecond)
	}
	conf := k.conf(t, n.given, socket)
	for i, step := range append(add, del...) {
		for _, ending := range some(k, i, []string{"DEL", "GC", "a start without the pod"}) {
			ns := nstest.New(t)
			if strings.HasPrefix(step, "DEL") {
				n.addAsked(t, ns, "c1")
			}
			handler.killPluginAt(t, step, ns, conf)
			if ending == "a start without the pod" {
				vanish(t, ns)
				n.restart(t)
				n.assertNothing(t)
			} else {
				handler.Add(1)
				if out, err := pluginWith(ending, ns, conf).CombinedOutput(); err != nil {
					t.Errorf("%s: %v: %s", ending, err, out)
				}
				n.assertNothing(t, ns)
			}
			assertNoTombstones(t, socket)
			if t.Failed() {
				t.Fatalf("killed at the step %q, followed by %s", step, ending)
			}
		}
	}
}

// killPluginAt returns when the agent is done with what the plugin had asked for.
func (c *counted) killPluginAt(t *testing.T, step string, ns *nstest.NS, conf json.RawMessage) {
	t.Helper()
	reached, goOn := make(chan struct{}), make(chan struct{})
	c.node.cfg.step = func(name string) error {
		if name == step {
			close(reached)
			<-goOn
		}
		return nil
	}
	c.Add(1)
	victim := pluginWith(step[:3], ns, conf)
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	<-reached
	victim.Process.Kill()
	victim.Wait()
	close(goOn)
	c.Wait()
	c.node.cfg.step = nil
}
