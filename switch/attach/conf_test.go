package attach

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
)

// conf is a network configuration with more keys.
func conf(t *testing.T, keys, args string) Conf {
	t.Helper()
	c, err := parseConf(fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "pods", "type": "tapyard-cni", "unknown": [{"x": 1}]%s}`, keys), args, nstest.CNIPlugins(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What is wrong is refused as the specification says, with key and value.
func TestWrongConfiguration(t *testing.T) {
	runtime := func(s string) string { return `"capabilities": {"portMappings": true}, "runtimeConfig": {` + s + `}` }
	for keys, want := range map[string][]string{
		`"subnet": "10.244.1.0"`:                                                             {`"subnet"`, `"10.244.1.0"`},
		`"subnet": "10.244.1.1/24"`:                                                          {`"subnet"`, "host bits"},
		`"subnet": "10.244.1.0/26", "ranges": ["10.0.0.0/8"]`:                                {`"subnet"`, "ranges"},
		`"ranges": ["10.244.1.0/26", "10.244.1.64/26"]`:                                      {`"10.244.1.64/26"`, "10.244.1.0/26"},
		`"ranges": "10.244.1.0/26"`:                                                          {`"ranges"`, "string"},
		`"mtu": 67`:                                                                          {`"mtu"`, "67", "68"},
		`"mtu": "1400"`:                                                                      {`"mtu"`, "string"},
		`"portType": "macvlan"`:                                                              {`"portType"`, `"macvlan"`, `"tap"`},
		`"routes": [{"dst": "10.0.0.1/8"}]`:                                                  {`"routes.dst"`, "10.0.0.1/8"},
		`"routes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]`:                                 {`"routes.gw"`, "fd00::1", "10.0.0.0/8"},
		`"ipam": {"type": "../evil"}`:                                                        {`"ipam.type"`, "../evil", "host-local"},
		`"ipam": {"type": "static"}, "subnet": "10.244.1.0/26"`:                              {`"ipam"`, `"static"`, "'subnet'"},
		runtime(`"ips": ["224.0.0.1"]`):                                                      {`"runtimeConfig.ips"`, "224.0.0.1"},
		runtime(`"ips": ["10.244.1.7", "10.244.1.8/24"]`):                                    {"10.244.1.8", "10.244.1.7"},
		runtime(`"mac": "01:00:00:00:00:01"`):                                                {`"runtimeConfig.mac"`, "01:00", "unicast"},
		runtime(`"mac": "x"`):                                                                {`"runtimeConfig.mac"`, `"x"`},
		runtime(`"bandwidth": {"ingressRate": 1000}`):                                        {"ingressRate", "1000", "ingressBurst"},
		runtime(`"bandwidth": {"egressBurst": 1000}`):                                        {"egressRate", "egressBurst 1000"},
		runtime(`"bandwidth": {"egressRate": -1}`):                                           {"egressRate", "number"},
		runtime(`"portMappings": [{"hostPort": 0, "containerPort": 1}]`):                     {"hostPort", "is 0"},
		runtime(`"portMappings": [{"hostPort": 1, "containerPort": 65536}]`):                 {"containerPort", "65536"},
		runtime(`"portMappings": [{"hostPort": 1, "containerPort": 2, "protocol": "icmp"}]`): {"protocol", `"icmp"`, "sctp"},
		runtime(`"portMappings": [{"hostPort": 1, "containerPort": 2, "hostIP": "192.168.1.0/24"}]`): {"hostIP", "192.168.1.0/24"},
	} {
		_, err := parseConf([]byte(`{"cniVersion": "1.1.0", `+keys+`}`), "", "")
		if podapi.AsError(errors.Join(err, errors.New(""))).Code != podapi.CodeInvalidConf {
			t.Errorf("%s: %v; want code %d", keys, err, podapi.CodeInvalidConf)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", keys, err, w)
			}
		}
	}
	if _, err := parseConf([]byte(`{`), "", ""); podapi.AsError(err).Code != podapi.CodeDecode {
		t.Errorf("no JSON: %v", err)
	}
}

// refuse expects an ADD to fail with the code and all of the words, and to leave nothing in the pod.
func (n *node) refuse(t *testing.T, c Conf, code uint, want ...string) {
	t.Helper()
	ns := nstest.New(t)
	req := reqFor(ns, "refused")
	req.Conf = c
	_, err := n.Add(t.Context(), req)
	if err == nil || podapi.AsError(err).Code != code {
		t.Errorf("error %v, want code %d", err, code)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if links := linksOf(t, ns); len(links) != 1 {
		t.Errorf("devices in the pod: %v", links)
	}
}

func (n *node) addWith(t *testing.T, ns *nstest.NS, id string, c Conf) Attachment {
	t.Helper()
	req := reqFor(ns, id)
	req.Conf = c
	a, err := n.Add(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A configuration with ranges of its own has a pool of its own, which nobody else gets an address of, also
// after a restart.
func TestRangesOfAConfiguration(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Subnets = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/28")} })
	small := conf(t, `, "subnet": "10.244.1.4/31"`, "")
	a, b := n.addWith(t, nstest.New(t), "a", small), n.addWith(t, nstest.New(t), "b", small)
	if got := []netip.Addr{a.Addrs()[0], b.Addrs()[0]}; !slices.Equal(got, addrs("10.244.1.4", "10.244.1.5")) || a.Addresses[0].Bits() != 28 {
		t.Errorf("addresses %v", got)
	}
	n.refuse(t, small, podapi.CodeTryAgain, "10.244.1.4/31", "all 2", "'ranges'")
	other := conf(t, `, "ranges": ["10.244.1.4/30"]`, "")
	other.Name = "others"
	n.refuse(t, other, podapi.CodeInvalidConf, "10.244.1.4/30", "10.244.1.4/31", `"pods"`, `"others"`)
	n.refuse(t, conf(t, `, "ranges": ["10.244.2.0/28"]`, ""), podapi.CodeInvalidConf, "10.244.2.0/28", "10.244.1.0/28")
	n.refuse(t, conf(t, `, "ranges": ["fd00::/64"]`, ""), podapi.CodeInvalidConf, "fd00::/64", "10.244.1.0/28")
	plain := Conf{Name: "plain"}
	var rest []netip.Addr
	for i := range 10 {
		if i == 5 {
			n.restart(t)
		}
		rest = append(rest, n.addWith(t, nstest.New(t), fmt.Sprint("plain", i), plain).Addrs()[0])
	}
	slices.SortFunc(rest, netip.Addr.Compare)
	if want := addrs("10.244.1.3", "10.244.1.6", "10.244.1.7", "10.244.1.8", "10.244.1.9", "10.244.1.10", "10.244.1.11", "10.244.1.12", "10.244.1.13", "10.244.1.14"); !slices.Equal(rest, want) {
		t.Errorf("the others have %v, want %v", rest, want)
	}
	n.refuse(t, plain, podapi.CodeTryAgain, "10.244.1.0/28", "10.244.1.4/31")
	n.del(t, Request{ContainerID: "a", IfName: "eth0", NetnsFD: -1})
	if c := n.addWith(t, nstest.New(t), "c", small); c.Addrs()[0] != a.Addrs()[0] {
		t.Errorf("the freed address went to %v", c.Addrs())
	}
}

func TestDeviceAndRoutesOfAConfiguration(t *testing.T) {
	n, ns := newNode(t, nil), nstest.New(t)
	n.refuse(t, conf(t, `, "mtu": 1431`, ""), podapi.CodeInvalidConf, `"mtu"`, "1431", "1430")
	n.refuse(t, conf(t, `, "routes": [{"dst": "192.168.0.0/16", "gw": "10.9.9.9"}]`, ""), podapi.CodeInvalidConf, "10.9.9.9", "10.244.1.0/24")
	a := n.addWith(t, ns, "a", conf(t, `, "mtu": 1400, "portType": "veth", "routes": [{"dst": "192.168.0.0/16"},
		{"dst": "0.0.0.0/0", "gw": "10.244.1.9"}, {"dst": "fd99::/32", "gw": "fd00:10:244:1::9"}]`, ""))
	if l := linksOf(t, ns)["eth0"]; l.MTU != 1400 || l.LinkInfo.Kind != "veth" {
		t.Errorf("eth0 is %+v", l)
	}
	want := []string{"10.244.1.9 eth0", "fd00:10:244:1::1 eth0"}
	if got := routesOf(t, ns); !slices.Equal(got, want) {
		t.Errorf("default routes %v, want %v", got, want)
	}
	for args, want := range map[string]string{"-4 route show 192.168.0.0/16": "via 10.244.1.1 dev eth0", "-6 route show fd99::/32": "via fd00:10:244:1::9 dev eth0"} {
		out, err := ns.Command("ip", strings.Fields(args)...).Output()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("ip %s: %s, %v; want %q", args, out, err, want)
		}
	}
	out, err := result(a, conf(t, "", ""))
	if err != nil || strings.Count(string(out), `"0.0.0.0/0"`) != 1 || !strings.Contains(string(out), `{"dst":"0.0.0.0/0","gw":"10.244.1.9"}`) {
		t.Errorf("result %s, %v", out, err)
	}
	// The limit stays when the network's MTU grows, and gives way when it shrinks.
	for mtu, want := range map[int]int{1390: 1390, 9000: 1400} {
		if err := n.SetMTU(t.Context(), mtu); err != nil {
			t.Fatal(err)
		}
		if l := linksOf(t, ns)["eth0"]; l.MTU != want {
			t.Errorf("with %d, eth0 has MTU %d, want %d", mtu, l.MTU, want)
		}
	}
	n.restart(t) // and Config.MTU says 1430
	if l := linksOf(t, ns)["eth0"]; l.MTU != 1400 {
		t.Errorf("restored with MTU %d", l.MTU)
	}
}

// Wanted addresses and MACs, by both ways in which runtimes tell them.
func TestRequestedAddresses(t *testing.T) {
	n := newNode(t, nil)
	const ips, mac = `, "runtimeConfig": {"ips": ["10.244.1.20/24", "fd00:10:244:1::20"]}`, `, "runtimeConfig": {"mac": "0A:00:00:00:00:01"}`
	ns := nstest.New(t)
	a := n.addWith(t, ns, "a", conf(t, ips, "MAC=0a:00:00:00:00:01"))
	if want := addrs("10.244.1.20", "fd00:10:244:1::20"); !slices.Equal(a.Addrs(), want) || linksOf(t, ns)["eth0"].MAC != "0a:00:00:00:00:01" {
		t.Errorf("attached %+v, want %v", a, want)
	}
	n.assertConnected(t, ns, a)
	n.refuse(t, conf(t, ips, ""), podapi.CodeTryAgain, "10.244.1.20", "a/eth0")
	n.refuse(t, conf(t, mac, ""), podapi.CodeTryAgain, "0a:00:00:00:00:01", a.Name)
	n.refuse(t, conf(t, "", "IgnoreUnknown=1;IP=10.244.2.20"), podapi.CodeInvalidConf, "10.244.2.20", "10.244.1.0/24")
	n.refuse(t, conf(t, "", "IP=10.244.1.1"), podapi.CodeInvalidConf, "10.244.1.1")
	if b := n.addWith(t, nstest.New(t), "b", conf(t, mac[:0], "IP=10.244.1.21")); b.Addrs()[0] != addrs("10.244.1.21")[0] || len(b.Addresses) != 2 {
		t.Errorf("attached %+v", b)
	}
}

// hostLocal is a delegation to the reference plugin, which keeps its addresses in dir.
func hostLocal(t *testing.T, dir, ranges string) Conf {
	return conf(t, fmt.Sprintf(`, "ipam": {"type": "host-local", "dataDir": %q, "ranges": %s, "routes": [{"dst": "192.168.0.0/16"}]}`, dir, ranges), "")
}

// given lists the addresses that host-local has given out.
func given(t *testing.T, dir string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "pods", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			out = append(out, filepath.Base(f))
		}
	}
	return out
}

const ranges = `[[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.30"}], [{"subnet": "fd00:10:244:1::/64", "rangeStart": "fd00:10:244:1::30"}]]`

// The plugin's addresses are the pod's and out of our own pools; its DEL follows, whoever has forgotten what.
func TestDelegatedIPAM(t *testing.T) {
	n, ns, dir := newNode(t, nil), nstest.New(t), t.TempDir()
	c := hostLocal(t, dir, ranges)
	a := n.addWith(t, ns, "a", c)
	if want := addrs("10.244.1.30", "fd00:10:244:1::30"); !slices.Equal(a.Addrs(), want) {
		t.Fatalf("addresses %v, want %v", a.Addrs(), want)
	}
	if want := []string{"10.244.1.1 eth0", "fd00:10:244:1::1 eth0"}; !slices.Equal(routesOf(t, ns), want) {
		t.Errorf("default routes %v, want %v", routesOf(t, ns), want)
	}
	if out, err := ns.Command("ip", "route", "show", "192.168.0.0/16").Output(); err != nil || !strings.Contains(string(out), "via 10.244.1.1 dev eth0") {
		t.Errorf("the plugin's route: %s %v", out, err)
	}
	out, err := result(a, c)
	if err != nil || !strings.Contains(string(out), `"gateway":"10.244.1.1"`) || !strings.Contains(string(out), `"192.168.0.0/16"`) {
		t.Errorf("result %s, %v", out, err)
	}
	n.refuse(t, conf(t, "", "IP=10.244.1.30"), podapi.CodeTryAgain, "10.244.1.30", "a/eth0")
	checked := Request{ContainerID: "a", IfName: "eth0", NetnsPath: ns.Path(), Conf: c}
	if err := checkIPAM(t.Context(), a, checked); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	n.restart(t)
	n.refuse(t, conf(t, "", "IP=10.244.1.30"), podapi.CodeTryAgain, "10.244.1.30", "a/eth0")
	n.del(t, Request{ContainerID: "a", IfName: "eth0", NetnsFD: -1})
	if left := given(t, dir); len(left) > 0 {
		t.Errorf("after DEL host-local has %v", left)
	}
	if err := checkIPAM(t.Context(), a, checked); err == nil {
		t.Error("CHECK finds an address that was given back")
	}
	// A DEL of an ADD that was killed before its record.
	if _, err := c.IPAM.run(t.Context(), "ADD", reqFor(ns, "killed")); err != nil || len(given(t, dir)) != 2 {
		t.Fatal(err, given(t, dir))
	}
	killed := reqFor(ns, "killed")
	killed.Conf = c
	n.del(t, killed)
	if left := given(t, dir); len(left) > 0 {
		t.Errorf("after the DEL of a killed ADD host-local has %v", left)
	}
	n.assertNothing(t, ns)
}

// What fails after the plugin's ADD, or in it, gives its addresses back.
func TestFailureAfterDelegatedIPAM(t *testing.T) {
	n, dir := newNode(t, nil), t.TempDir()
	n.add(t, nstest.New(t), "holder")
	for name, c := range map[string]struct {
		ranges string
		code   uint
		words  []string
	}{
		"taken":              {`[[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.3"}]]`, podapi.CodeTryAgain, []string{"host-local", "10.244.1.3", "holder/eth0"}},
		"the switch's own":   {`[[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.2"}]]`, podapi.CodeInvalidConf, []string{"10.244.1.2", "10.244.1.3 to"}},
		"a foreign length":   {`[[{"subnet": "10.244.0.0/16", "rangeStart": "10.244.1.9"}]]`, podapi.CodeInvalidConf, []string{"10.244.1.9/16", "10.244.1.0/24"}},
		"a foreign gateway":  {`[[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9", "gateway": "10.244.1.254"}]]`, podapi.CodeInvalidConf, []string{"10.244.1.254", "10.244.1.1"}},
		"the plugin refuses": {`[[{"subnet": "10.244.1.0/32"}]]`, podapi.CodeInternal, []string{"IPAM plugin host-local, ADD"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir() // host-local goes on behind what it gave last
			n.refuse(t, hostLocal(t, dir, c.ranges), c.code, c.words...)
			if left := given(t, dir); len(left) > 0 {
				t.Errorf("host-local keeps %v", left)
			}
		})
	}
	n.fail = errors.New("no")
	n.refuse(t, hostLocal(t, dir, ranges), podapi.CodeInternal, "publish")
	if left := given(t, dir); len(left) > 0 {
		t.Errorf("host-local keeps %v", left)
	}
	n.fail = nil
	n.refuse(t, conf(t, `, "ipam": {"type": "nonesuch"}`, ""), podapi.CodeInvalidConf, "nonesuch", "CNI_PATH", os.Getenv("XDG_CACHE_HOME"))
	n.refuse(t, conf(t, `, "ipam": {"type": "dhcp"}`, ""), podapi.CodeInvalidConf, "dhcp", "routed")
}

// A network without routes takes any address, with the routes of the plugin and no others.
func TestStaticAddressesOnASegment(t *testing.T) {
	n, ns := newNode(t, func(c *Config) { c.Networks = []Network{{Name: "blue", VNI: 7}} }), nstest.New(t)
	c := conf(t, `, "network": "blue", "ipam": {"type": "static", "addresses": [{"address": "172.16.5.5/24", "gateway": "172.16.5.1"}],
		"routes": [{"dst": "172.31.0.0/16"}], "dns": {"nameservers": ["172.16.5.53"]}}`, "")
	a := n.addWith(t, ns, "a", c)
	if got := addressesOf(linksOf(t, ns)["eth0"]); !slices.Contains(got, "172.16.5.5/24") || len(routesOf(t, ns)) > 0 {
		t.Errorf("addresses %v, default routes %v", got, routesOf(t, ns))
	}
	out, err := result(a, c)
	if err != nil || !strings.Contains(string(out), `{"dst":"172.31.0.0/16","gw":"172.16.5.1"}`) || !strings.Contains(string(out), "172.16.5.53") {
		t.Errorf("result %s, %v", out, err)
	}
	n.restart(t)
	if n.port(t, a) == nil {
		t.Error("not restored")
	}
}

// What plugins before us have made stands before ours in the result.
func TestResultGoesOnFromPrevResult(t *testing.T) {
	n, ns := newNode(t, nil), nstest.New(t)
	c := conf(t, `, "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "br0"}, {"name": "first0", "sandbox": "/x"}],
		"ips": [{"interface": 1, "address": "192.0.2.1/24"}], "dns": {"domain": "example.org"}}`, "")
	out, err := result(n.addWith(t, ns, "a", c), c)
	if err != nil {
		t.Fatal(err)
	}
	r, err := decodeResult("1.1.0", out)
	if err != nil || len(r.Interfaces) != 3 || r.Interfaces[2].Name != "eth0" || len(r.IPs) != 3 || *r.IPs[0].Interface != 1 || *r.IPs[1].Interface != 2 || r.DNS.Domain != "example.org" {
		t.Errorf("result %s, %v", out, err)
	}
}
