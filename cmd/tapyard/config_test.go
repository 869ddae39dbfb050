package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tapyard/switch/attach"
	"tapyard/switch/control/static"
)

func TestBadConfigurationStopsTheStart(t *testing.T) {
	routed := config{Name: "n1", IO: ioAuto, Workers: 2, PodQueues: 2, PortType: attach.TAP, Mode: modeRouted, VNI: 1, Port: 4789, Wire: wireAuto, RunDir: "/run/tapyard",
		PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, Underlay: []netip.Addr{netip.MustParseAddr("192.168.1.11")}}
	if err := routed.check(); err != nil {
		t.Fatal(err)
	}
	for part, change := range map[string]func(*config){
		"name is empty":                func(c *config) { c.Name = "" },
		"port 0":                       func(c *config) { c.Port = 0 },
		"vni 16777216":                 func(c *config) { c.VNI = 1 << 24 },
		"workers 65":                   func(c *config) { c.Workers = 65 },
		"podQueues 0: 1 to 2":          func(c *config) { c.PodQueues = 0 },
		"podQueues 3: 1 to 2":          func(c *config) { c.PodQueues = 3 },
		"portType veth has one":        func(c *config) { c.PortType = attach.Veth },
		"mtu 576":                      func(c *config) { c.MTU = 576 },
		"mtu 65535":                    func(c *config) { c.MTU = 65535 }, // the kernel refuses more than 65521
		`io "epoll": auto, readwrite`:  func(c *config) { c.IO = "epoll" },
		`mode "bridge"`:                func(c *config) { c.Mode = "bridge" },
		"gives out no addresses":       func(c *config) { c.Mode = modeL2 },
		`wire "fast"`:                  func(c *config) { c.Wire = "fast" },
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

// What of a further network can't be served is said before anything is touched.
func TestBadNetworksStopTheStart(t *testing.T) {
	prefixes := func(text ...string) (list []netip.Prefix) {
		for _, p := range text {
			list = append(list, netip.MustParsePrefix(p))
		}
		return list
	}
	good := networkConfig{Name: "blue", VNI: 200, L2: l2Stretched, Subnets: prefixes("10.9.0.0/24"), Ranges: prefixes("10.9.0.64/26")}
	for want, networks := range map[string][]networkConfig{
		"": {good, {Name: "lab", VNI: 201, L2: l2Local, Uplink: "eth1", Subnets: prefixes("192.168.1.0/24"), Ranges: prefixes("192.168.1.128/25")}},
		`networks[1] "blue": another network has this name`:                                          {good, {Name: "blue", VNI: 201, L2: l2Local}},
		`networks[0] "": a network needs a name`:                                                     {{VNI: 201, L2: l2Local}},
		`vni 200 is that of network blue already`:                                                    {good, {Name: "red", VNI: 200, L2: l2Local}},
		`vni 1 is that of the node's own network`:                                                    {{Name: "red", VNI: 1, L2: l2Local}},
		`l2 "": local, or stretched`:                                                                 {{Name: "red", VNI: 201}},
		`uplink eth1 is that of network red already`:                                                 {{Name: "red", VNI: 201, L2: l2Local, Uplink: "eth1"}, {Name: "lab", VNI: 202, L2: l2Local, Uplink: "eth1"}},
		`ranges: one per subnet`:                                                                     {{Name: "red", VNI: 201, L2: l2Stretched, Subnets: prefixes("10.8.0.0/24")}},
		`ranges: 2 for 1 subnets`:                                                                    {{Name: "red", VNI: 201, L2: l2Local, Subnets: prefixes("10.8.0.0/24"), Ranges: prefixes("10.8.0.0/25", "10.8.0.128/25")}},
		`range 10.7.0.0/25: want a prefix without host bits inside of subnet 10.8.0.0/24`:            {{Name: "red", VNI: 201, L2: l2Local, Subnets: prefixes("10.8.0.0/24"), Ranges: prefixes("10.7.0.0/25")}},
		`pod subnet 10.8.0.1/24 has host bits`:                                                       {{Name: "red", VNI: 201, L2: l2Local, Subnets: prefixes("10.8.0.1/24")}},
		`subnets 10.8.0.0/24 and 10.7.0.0/24 are of one family`:                                      {{Name: "red", VNI: 201, L2: l2Local, Subnets: prefixes("10.8.0.0/24", "10.7.0.0/24")}},
		`subnet 10.244.1.0/25 overlaps podSubnets 10.244.1.0/24`:                                     {{Name: "red", VNI: 201, L2: l2Local, Subnets: prefixes("10.244.1.0/25")}},
		`subnet 10.9.0.0/16 overlaps 10.9.0.0/24 of network "blue"`:                                  {good, {Name: "red", VNI: 201, L2: l2Local, Subnets: prefixes("10.9.0.0/16")}},
		`ranges: 192.168.1.0/24 holds this node's own address 192.168.1.11, which pods must not get`: {{Name: "red", VNI: 201, L2: l2Local, Subnets: prefixes("192.168.1.0/24")}},
	} {
		c := config{Name: "n1", IO: ioAuto, PodQueues: 1, PortType: attach.TAP, Mode: modeRouted, VNI: 1, Port: 4789, Wire: wireAuto, RunDir: "/run/tapyard", Networks: networks,
			PodSubnets: prefixes("10.244.1.0/24"), Underlay: []netip.Addr{netip.MustParseAddr("192.168.1.11")}}
		if err := c.check(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

// What --help teaches works as it stands, and names every key that isn't about files, sizes or one segment.
func TestHelpIsRight(t *testing.T) {
	cmd := agentCommand()
	_, examples, _ := strings.Cut(cmd.Long, "\n  # "+defaultConfig)
	node, peers, ok := strings.Cut(examples, "\n  # /etc/tapyard/peers.yaml\n")
	peers, _, _ = strings.Cut(peers, "\n\n")
	if !ok {
		t.Fatal("the examples are not where they were")
	}
	c, before := defaults(), defaults()
	if err := static.Decode([]byte("#"+strings.ReplaceAll(node, "\n  ", "\n")), &c); err != nil {
		t.Fatal(err)
	}
	if err := c.check(); err != nil {
		t.Error(err)
	}
	if c.IO != before.IO || c.PortType != before.PortType || c.Wire != before.Wire || c.SourceGuard != before.SourceGuard || c.Masquerade != before.Masquerade || c.Ageing != before.Ageing || c.PodQueues != before.PodQueues || c.BUMLimit != before.BUMLimit || c.Flows != before.Flows {
		t.Errorf("the values said to be the defaults: %+v, and those that are: %+v", c, before)
	}
	state, err := static.Parse([]byte(strings.ReplaceAll("\n"+peers, "\n  ", "\n")))
	if err != nil {
		t.Fatal(err)
	}
	n := c.node(1450)
	if err := state.Validate(&n); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"io", "podQueues", "portType", "sourceGuard", "masquerade", "ageing", "bumLimit", "flows", "networks", "uplink", "wire"} {
		if !strings.Contains(cmd.Long, key+":") {
			t.Errorf("--help doesn't show %s", key)
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
	for text, want := range map[string]string{
		"name: n7\npodSubnet: [10.1.0.0/24]": `line 2: unknown key "podSubnet"; there are name, mode,`,
		"podSubnets: [10.1.0.0/33]":          `line 1: podSubnets[0]: "10.1.0.0/33" is not an address range;`,
		"underlay: [n1.example]":             `line 1: underlay[0]: "n1.example" is not an IP address; names are not resolved`,
		"logLevel: loud":                     `line 1: logLevel: "loud" is none of debug, info, warn and error`,
		"port: 99999":                        `line 1: port: "99999" is not a whole number from 0 to 65535`,
		"networks: [{name: lab, vni: lots}]": `line 1: networks[0] (lab): vni: "lots" is not a whole number from 0 to 4294967295`,
	} {
		write(text)
		if _, err := configFrom([]string{"--config", path}); err == nil || !strings.HasPrefix(err.Error(), "configuration "+path+": "+want) {
			t.Errorf("%q: error %v, want %q behind the file's name", text, err, want)
		}
	}
	write("")
	for flag, want := range map[string]string{
		"--underlay=n1.example":   `invalid argument "n1.example" for "--underlay" flag: "n1.example" is not an IP address; names are not resolved, write the address`,
		"--pod-subnet=10.244.1.9": `invalid argument "10.244.1.9" for "--pod-subnet" flag: "10.244.1.9" has no length; write the range, for example 10.244.1.0/24`,
	} {
		if _, err := configFrom([]string{"--config", path, flag}); err == nil || err.Error() != want {
			t.Errorf("%s: error %v, want %q", flag, err, want)
		}
	}
	if _, err := configFrom([]string{"--config", path + ".absent"}); err == nil {
		t.Error("a named configuration file may be missing")
	}
}
