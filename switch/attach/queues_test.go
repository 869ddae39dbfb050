package attach

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
	"tapyard/switch/port"
)

// queuesOf asks the pod's kernel how many queues are attached to the device, 0 for one of the kind that has one.
func queuesOf(t *testing.T, ns *nstest.NS) (n int) {
	t.Helper()
	ns.Do(t, func() {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		n = link.(*netlink.Tuntap).Queues
	})
	return n
}

func withSteering(workers, queues int) func(*Config) {
	return func(c *Config) { c.Queues, c.Steering = queues, port.NewSteering(workers) }
}

// Pods have the queues that the node gives, or their network configuration, and keep them: when the agent starts
// anew, with another number for new pods or fewer workers.
func TestQueuesAreRestored(t *testing.T) {
	n := newNode(t, withSteering(3, 2))
	pods := map[string]*nstest.NS{}
	for id, conf := range map[string]string{"node": `{"cniVersion":"1.0.0"}`, "one": `{"cniVersion":"1.0.0","queues":1}`, "three": `{"cniVersion":"1.0.0","queues":3}`} {
		pods[id] = nstest.New(t)
		req := &podapi.Request{Command: "ADD", ContainerID: id, IfName: "eth0", Netns: pods[id].Path(), Stdin: json.RawMessage(conf)}
		if _, err := n.Handle(t.Context(), req, pods[id].FD()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		restart          func(*Config)
		node, one, three int
	}{
		{nil, 2, 0, 3},
		{withSteering(3, 1), 2, 0, 3},
		{withSteering(2, 2), 2, 0, 2},
		{withSteering(1, 1), 1, 0, 1},
		{withSteering(3, 3), 2, 0, 3},
	} {
		if c.restart != nil {
			c.restart(&n.start)
			n.restart(t)
		}
		for id, want := range map[string]int{"node": c.node, "one": c.one, "three": c.three} {
			if got := queuesOf(t, pods[id]); got != want {
				t.Errorf("pod %s has %d queues attached, want %d", id, got, want)
			}
			if p := n.port(t, Attachment{ContainerID: id, IfName: "eth0"}); len(p.Rx()) != max(want, 1) {
				t.Errorf("pod %s has %d receive queues, want %d", id, len(p.Rx()), max(want, 1))
			}
		}
	}
	for id, ns := range pods {
		n.del(t, reqFor(ns, id))
	}
	n.assertNothing(t, pods["node"], pods["one"], pods["three"])
}

// More queues than workers, and queues of a veth pair, are refused before anything is made.
func TestQueuesAreRefused(t *testing.T) {
	for says, c := range map[string]struct {
		portType string
		queues   int
	}{`"queues" is 3: 1 to 2`: {TAP, 3}, `"queues" is -1: 1 to 2`: {TAP, -1}, `"queues" is 2: the pod has a veth pair`: {Veth, 2}} {
		n, ns := newNode(t, withSteering(2, 1)), nstest.New(t)
		n.cfg.PortType = c.portType
		req := reqFor(ns, "c1")
		req.Conf.Queues = c.queues
		var coded *podapi.Error
		if _, err := n.Add(t.Context(), req); !errors.As(err, &coded) || coded.Code != podapi.CodeInvalidConf || !strings.Contains(err.Error(), says) {
			t.Errorf("%d queues, port type %s: %v, want %q", c.queues, c.portType, err, says)
		}
		n.assertNothing(t, ns)
	}
}

// A second agent that knows of the pod, from a copy of the state, takes no queue from the first one.
func TestASecondAgentGetsNoQueue(t *testing.T) {
	n, ns := newNode(t, withSteering(2, 2)), nstest.New(t)
	a := n.add(t, ns, "c1")
	second := newNode(t, withSteering(2, 2))
	if err := second.store.put(a); err != nil {
		t.Fatal(err)
	}
	second.restart(t)
	if got := queuesOf(t, ns); got != 2 || len(second.listed()) != 0 {
		t.Errorf("%d queues attached; the second agent has restored %v", got, second.listed())
	}
	if err := second.store.delete(a.Key()); err != nil {
		t.Fatal(err)
	}
	second.forget(a.Key())
	n.del(t, reqFor(ns, "c1"))
}
