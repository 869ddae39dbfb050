package attach

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
)

// What CHECK sees in a pod is tested with a real agent, in cmd/tapyard; here is what it asks of the switch, and of the
// agent's own state.
func TestCheckProbes(t *testing.T) {
	var asked []netip.Addr
	var answer error
	n := newNode(t, func(c *Config) {
		c.Probe = func(_ context.Context, _ Attachment, addrs []netip.Addr) error {
			asked = addrs
			return answer
		}
	})
	ns := nstest.New(t)
	a := n.add(t, ns, "c1")
	raw, err := result(a, Conf{CNIVersion: "1.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := types100.NewResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	prev := parsed.(*types100.Result)
	check := func(want string) {
		t.Helper()
		asked = nil
		err := n.Check(t.Context(), reqFor(ns, "c1"), prev)
		if want == "" && err == nil {
			return
		}
		if want == "" || err == nil || podapi.AsError(err).Code != podapi.CodeBroken || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	check("")
	if !slices.Equal(asked, a.Addrs()) {
		t.Errorf("asked for %v, want %v", asked, a.Addrs())
	}
	answer = errors.New("nobody there")
	check("nobody there")
	if out, err := ns.Command("ip", "link", "set", "eth0", "down").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if check("eth0 is down"); asked != nil {
		t.Errorf("a pod that is broken was asked for %v", asked)
	}
	// A record that doesn't fit the configuration any more is not restored.
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.start.Subnets = []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}
	n.reopen(t)
	check("podSubnets")
	n.del(t, reqFor(ns, "c1"))
	if err = n.Check(t.Context(), reqFor(ns, "c1"), prev); err == nil || podapi.AsError(err).Code != podapi.CodeUnknown {
		t.Errorf("after DEL: %v", err)
	}
}

// A node that reaches no other says so, and beside it that the pool is empty.
func TestStatus(t *testing.T) {
	var cut error
	n := newNode(t, func(c *Config) {
		c.Subnets = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/29")}
		c.CutOff = func() error { return cut }
	})
	status := func(code uint, parts ...string) {
		t.Helper()
		err := n.Status(Conf{})
		if code == 0 {
			if err != nil {
				t.Error(err)
			}
			return
		}
		if err == nil {
			t.Errorf("no error, want code %d with %q", code, parts)
			return
		}
		e := podapi.AsError(err)
		for _, part := range parts {
			if e.Code != code || !strings.Contains(e.Msg+"; "+e.Details, part) {
				t.Errorf("error %+v, want code %d with %q", e, code, part)
			}
		}
	}
	status(0)
	cut = errors.New("no carrier")
	status(podapi.CodeLimited, "no carrier")
	for _, id := range []string{"a", "b", "c", "d"} {
		n.add(t, nstest.New(t), id)
	}
	status(podapi.CodeLimited, "no carrier", "10.244.1.0/29")
	cut = nil
	status(podapi.CodeNotAvailable, "10.244.1.0/29", "podSubnets")
	n.del(t, Request{ContainerID: "b", IfName: "eth0", NetnsFD: -1})
	status(0)
}
