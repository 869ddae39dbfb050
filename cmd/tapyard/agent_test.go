package main

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// startAgent starts an agent without its sockets in the test's own network namespace.
func startAgent(t *testing.T, change func(*config)) (*agent, error) {
	t.Helper()
	c, dir := defaults(), t.TempDir()
	c.Name, c.Workers = "n1", 1
	c.PodSubnets, c.Underlay = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, []netip.Addr{netip.MustParseAddr("192.168.1.11")}
	c.PeersFile, c.RunDir, c.StateDir = filepath.Join(dir, "peers.yaml"), filepath.Join(dir, "run"), filepath.Join(dir, "state")
	change(&c)
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	a := &agent{cfg: &c, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	err := a.start(t.Context())
	closeIt := func() {
		if err := a.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err != nil {
		closeIt()
	} else {
		t.Cleanup(closeIt)
	}
	return a, err
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// onUnderlay gives the namespace the node's address and an interface to be an uplink.
func onUnderlay(t *testing.T) {
	sh(t, "ip addr add 192.168.1.11/32 dev lo; ip link add eth1 type veth peer name far1")
	t.Cleanup(func() {
		sh(t, "ip addr del 192.168.1.11/32 dev lo; ip link del eth1; ip link del tapyard0; nft flush ruleset")
	})
}

// An agent that is started by mistake says beside whom, and takes nothing from it: the masquerading of its pods
// and the guard of its uplink went before.
func TestSecondAgentTakesNothing(t *testing.T) {
	onUnderlay(t)
	var first *config
	_, err := startAgent(t, func(c *config) {
		c.Networks = []networkConfig{{Name: "blue", VNI: 7, L2: l2Local, Uplink: "eth1"}}
		first = c
	})
	if err != nil {
		t.Fatal(err)
	}
	before := sh(t, "nft list ruleset")
	if !strings.Contains(before, "table inet tapyard {") || !strings.Contains(before, "table netdev tapyard-eth1") {
		t.Fatalf("the agent's own rules are missing:\n%s", before)
	}
	for want, change := range map[string]func(*config){
		"tapyard.db: another agent holds it": func(c *config) { c.StateDir, c.Masquerade = first.StateDir, false },
		"tapyard0":                           func(c *config) { c.Masquerade = false },
		"device eth1 as a port: it is another agent's uplink": func(c *config) { c.Mode, c.PodSubnets, c.Uplink = modeL2, nil, "eth1" },
	} {
		if _, err := startAgent(t, change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
		if after := sh(t, "nft list ruleset"); after != before {
			t.Errorf("after %q the rules are\n%s\nwhich were\n%s", want, after, before)
		}
	}
}

// Other programs flush the ruleset to load their own.
func TestFlushedRulesComeBack(t *testing.T) {
	onUnderlay(t)
	a, err := startAgent(t, func(c *config) { c.Networks = []networkConfig{{Name: "blue", VNI: 7, L2: l2Local, Uplink: "eth1"}} })
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	a.log = slog.New(slog.NewTextHandler(&log, nil))
	before := sh(t, "nft list ruleset")
	a.restoreRules()
	if log.Len() > 0 {
		t.Errorf("while nothing is missing: %s", &log)
	}
	sh(t, "nft flush ruleset")
	a.restoreRules()
	if after := sh(t, "nft list tables"); !strings.Contains(after, "table inet tapyard\n") || !strings.Contains(after, "table netdev tapyard-eth1\n") {
		t.Errorf("the rules are\n%s\nwhich were\n%s", after, before)
	}
	for _, part := range []string{"masquerading restored", "devices=[eth1]", "nft flush ruleset"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the log lacks %q: %s", part, &log)
		}
	}
}

// What 'show' says follows the underlay's MTU.
func TestShownMTUFollows(t *testing.T) {
	onUnderlay(t)
	a, err := startAgent(t, func(c *config) { c.Networks = []networkConfig{{Name: "blue", VNI: 7, L2: l2Local, Uplink: "eth1"}} })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.watchUnderlay(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		sh(t, "ip link set lo mtu 65536")
	}()
	sh(t, "ip link set lo mtu 1400")
	source := a.source()
	mtus := func() map[string]int {
		shown := map[string]int{"config": source.Config().(*config).MTU}
		for _, p := range source.Ports() {
			shown[p.Name] = p.MTU
		}
		return shown
	}
	eventually(t, "all MTUs follow", func() bool {
		m := mtus()
		return m["tapyard0"] == 1350 && m["vxlan"] == 1350 && m["config"] == 1350
	})
	for _, p := range source.Ports() {
		if p.Name == "eth1" && (p.MTU != 1500 || !strings.Contains(sh(t, "ip link show eth1"), p.MAC)) {
			t.Errorf("the uplink is shown with MTU %d and MAC %s", p.MTU, p.MAC)
		}
	}
}
