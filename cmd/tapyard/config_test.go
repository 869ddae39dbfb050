package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tapyard/switch/attach"
)

func TestBadConfigurationStopsTheStart(t *testing.T) {
	routed := config{Name: "n1", PortType: attach.TAP, Mode: modeRouted, VNI: 1, Port: 4789, RunDir: "/run/tapyard",
		PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, Underlay: []netip.Addr{netip.MustParseAddr("192.168.1.11")}}
	if err := routed.check(); err != nil {
		t.Fatal(err)
	}
	for part, change := range map[string]func(*config){
		"name is empty":                func(c *config) { c.Name = "" },
		"port 0":                       func(c *config) { c.Port = 0 },
		"vni 16777216":                 func(c *config) { c.VNI = 1 << 24 },
		"workers 65":                   func(c *config) { c.Workers = 65 },
		"mtu 576":                      func(c *config) { c.MTU = 576 },
		`mode "bridge"`:                func(c *config) { c.Mode = "bridge" },
		"gives out no addresses":       func(c *config) { c.Mode = modeL2 },
		"podSubnets is empty":          func(c *config) { c.PodSubnets = nil },
		"underlay is empty":            func(c *config) { c.Underlay = nil },
		"write 10.244.1.0/24":          func(c *config) { c.PodSubnets[0] = netip.MustParsePrefix("10.244.1.9/24") },
		"no room for pods":             func(c *config) { c.PodSubnets[0] = netip.MustParsePrefix("10.244.1.0/30") },
		"own address 192.168.1.11":     func(c *config) { c.PodSubnets[0] = netip.MustParsePrefix("192.168.0.0/16") },
		"10.9.0.0/24 are of one":       func(c *config) { c.PodSubnets = append(c.PodSubnets, netip.MustParsePrefix("10.9.0.0/24")) },
		"too long for a unix socket's": func(c *config) { c.RunDir = "/" + strings.Repeat("x", 120) },
	} {
		c := routed
		c.PodSubnets = append([]netip.Prefix(nil), routed.PodSubnets...)
		change(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want one that names %q", err, part)
		}
	}
}

func TestFlagsWinOverTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tapyard.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("name: n7\nmtu: 1400\npodSubnets: [10.1.0.0/24]\nlogLevel: debug\n")
	c, err := configFrom([]string{"--config", path, "--mtu", "1300", "--pod-subnet", "10.2.0.0/24", "--pod-subnet", "fd00::/64"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "n7" || c.MTU != 1300 || c.LogLevel.String() != "DEBUG" || c.VNI != 1 || len(c.PodSubnets) != 2 || c.PodSubnets[0].String() != "10.2.0.0/24" {
		t.Errorf("configuration %+v", c)
	}
	for text, part := range map[string]string{
		"podSubnet: [10.1.0.0/24]":  "podSubnet",
		"podSubnets: [10.1.0.0/33]": "10.1.0.0/33",
		"logLevel: loud":            "loud",
	} {
		write(text)
		if _, err := configFrom([]string{"--config", path}); err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: error %v, want one that names %q and the file", text, err, part)
		}
	}
	if _, err := configFrom([]string{"--config", path + ".absent"}); err == nil {
		t.Error("a named configuration file may be missing")
	}
}
