package attach

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"tapyard/bench/nstest"
)

func (n *node) addOf(t *testing.T, conflist, id string) *nstest.NS {
	t.Helper()
	ns := nstest.New(t)
	req := reqFor(ns, id)
	req.Conf.Name = conflist
	if _, err := n.Add(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestGC(t *testing.T) { bothTypes(t, testGC) }

// GC goes on after an error, tells all of them, and knows after a restart whose pods are whose.
func testGC(t *testing.T, portType string) {
	n := newNode(t, ofType(portType))
	var pods []*nstest.NS
	for _, id := range []string{"kept", "stale", "stuck", "stale2", "stuck2"} {
		pods = append(pods, n.addOf(t, "pods", id))
	}
	pods = append(pods, n.addOf(t, "other", "others"), n.addOf(t, "", "nameless"))
	n.restart(t)
	stuck := errors.New("stuck")
	withdraw := n.cfg.Withdraw
	n.cfg.Withdraw = func(ctx context.Context, a Attachment) error {
		if strings.HasPrefix(a.ContainerID, "stuck") {
			return stuck
		}
		return withdraw(ctx, a)
	}
	valid := map[string]bool{"kept/eth0": true, "stale/eth1": true, "never/eth0": true}
	err := n.GC(t.Context(), "pods", valid)
	if !errors.Is(err, stuck) || !strings.Contains(err.Error(), "stuck/eth0") || !strings.Contains(err.Error(), "stuck2/eth0") {
		t.Errorf("error %v", err)
	}
	n.cfg.Withdraw = withdraw
	if want := []string{"kept/eth0", "stuck/eth0", "stuck2/eth0", "others/eth0", "nameless/eth0"}; !slices.Equal(n.listed(), want) || !slices.Equal(n.records(t), want) {
		t.Errorf("left %v, recorded %v, want %v", n.listed(), n.records(t), want)
	}
	if err := n.GC(t.Context(), "pods", valid); err != nil {
		t.Error(err)
	}
	if want := []string{"kept/eth0", "others/eth0", "nameless/eth0"}; !slices.Equal(n.listed(), want) {
		t.Errorf("left %v, want %v", n.listed(), want)
	}
	if err := errors.Join(n.GC(t.Context(), "pods", nil), n.GC(t.Context(), "other", nil), n.GC(t.Context(), "", nil)); err != nil {
		t.Error(err)
	}
	n.assertNothing(t, pods...)
}

// Without a list, GC collects what has vanished and nothing else.
func TestGCWithoutList(t *testing.T) {
	n := newNode(t, nil)
	kept := n.addOf(t, "pods", "kept")
	t.Run("pod", func(t *testing.T) { n.addOf(t, "pods", "gone"); n.restart(t) })
	if err := n.handleGC(t.Context(), []byte(`{"name":"pods"}`), Conf{}); err != nil {
		t.Error(err)
	}
	if want := []string{"kept/eth0"}; !slices.Equal(n.listed(), want) {
		t.Errorf("left %v, want %v", n.listed(), want)
	}
	n.del(t, reqFor(kept, "kept"))
	n.assertNothing(t, kept)
}
