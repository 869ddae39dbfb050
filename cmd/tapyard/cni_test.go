package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
	"tapyard/switch/observe"
)

var specVersions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Every verb in every version of the specification: what the version has works and prints what it should, the rest is
// refused with code 1.
func TestCNIVersions(t *testing.T) {
	r := newRuntime(t, dualStack)
	defer r.start()(unix.SIGTERM)
	for i, version := range specVersions {
		t.Run(version, func(t *testing.T) {
			ns, id := nstest.New(t), fmt.Sprint("c", i)
			conf := r.byHand("pods", version, map[string]any{"unknown": []any{1, "<&>"}})
			out, code := r.exec(t, "ADD", id, ns.Path(), conf)
			var result map[string]any
			if err := json.Unmarshal([]byte(out), &result); err != nil || code != 0 || result["cniVersion"] != version {
				t.Fatalf("ADD: exit code %d, %v, output %s", code, err, out)
			}
			for _, dev := range result["interfaces"].([]any) {
				if mac := dev.(map[string]any)["mac"]; mac == nil || mac == "" {
					t.Errorf("an interface without MAC: %v", dev)
				}
			}
			r.fails(t, podapi.CodeEnvironment, "exist", "ADD", id, ns.Path(), conf)
			check := r.byHand("pods", version, map[string]any{"prevResult": result})
			if i > 0 {
				r.silent(t, "CHECK", id, ns.Path(), check)
			} else {
				r.fails(t, podapi.CodeVersion, "0.4.0", "CHECK", id, ns.Path(), check)
			}
			gc := r.byHand("pods", version, map[string]any{"cni.dev/valid-attachments": []any{map[string]any{"containerID": id, "ifname": "eth0"}}})
			if version == "1.1.0" {
				r.silent(t, "STATUS", "", "", conf)
				r.silent(t, "GC", "", "", gc)
			} else {
				r.fails(t, podapi.CodeVersion, "1.1.0", "STATUS", "", "", conf)
				r.fails(t, podapi.CodeVersion, "1.1.0", "GC", "", "", gc)
			}
			r.silent(t, "DEL", id, ns.Path(), check)
			if out, code := r.exec(t, "VERSION", "", "", map[string]any{"cniVersion": version}); code != 0 ||
				out != fmt.Sprintf(`{"cniVersion":%q,"supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`+"\n", version) {
				t.Errorf("VERSION: exit code %d, output %s", code, out)
			}
		})
	}
	// A runtime takes the highest version that it has in common with cniVersions.
	list, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.0.0","1.1.0"],"name":"pods","plugins":[{"type":"tapyard-cni","socket":"` + r.socket() + `"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	ns := nstest.New(t)
	raw, err := r.AddNetworkList(t.Context(), list, podConf(ns, "newest"))
	if err != nil || raw.Version() != "1.1.0" {
		t.Errorf("ADD with cniVersions: %v, %v", raw, err)
	}
	if err := errors.Join(r.CheckNetworkList(t.Context(), list, podConf(ns, "newest")), r.GetStatusNetworkList(t.Context(), list),
		r.DelNetworkList(t.Context(), list, podConf(ns, "newest"))); err != nil {
		t.Error(err)
	}
}

// DEL succeeds whatever is missing: the namespace, prevResult, the attachment itself.
func TestCNIDel(t *testing.T) {
	r := newRuntime(t, dualStack)
	defer r.start()(unix.SIGTERM)
	list := r.conflist("pods", "1.1.0", nil)
	conf := r.byHand("pods", "1.1.0", nil)
	ns, _ := r.add(t, list, "c1")
	r.silent(t, "DEL", "c1", "", conf)
	in(t, ns, `! ip link show eth0 2>/dev/null`)
	r.silent(t, "DEL", "c1", "", conf)
	r.silent(t, "DEL", "c1", ns.Path(), conf)
	r.silent(t, "DEL", "c1", "/run/netns/gone", conf)
	r.silent(t, "DEL", "never", "", conf)
	t.Run("pod", func(t *testing.T) { r.add(t, list, "c2") })
	r.silent(t, "DEL", "c2", "/run/netns/gone", conf)
	if p := r.ports(t); len(p) > 0 {
		t.Errorf("ports left: %v", p)
	}
}

// CHECK finds each thing that is wrong, for both types of ports, and nothing on a pod as it should be.
func TestCNICheck(t *testing.T) {
	for _, portType := range []string{"tap", "veth"} {
		t.Run(portType, func(t *testing.T) {
			r := newRuntime(t, dualStack+"\nmtu: 1430\nportType: "+portType)
			defer r.start()(unix.SIGTERM)
			r.testCheck(t)
		})
	}
}

func (r *containerRuntime) testCheck(t *testing.T) {
	list := r.conflist("pods", "1.1.0", nil)
	drop := func(hook string) string {
		return `nft 'add table netdev x; add chain netdev x c { type filter hook ` + hook + ` device eth0 priority 0; policy drop; }'`
	}
	for i, c := range []struct{ name, script, want string }{
		{"as it should be", ``, ``},
		{"more than there was", `ip address add 192.0.2.7/32 dev eth0; ip route add 198.51.100.0/24 via 10.244.1.1`, ``},
		{"a lower MTU", `ip link set eth0 mtu 1300`, ``},
		{"route in a table of its own", `ip route del default; ip route add default via 10.244.1.1 dev eth0 table 100`, ``},
		{"IPv4 address", `ip address del 10.244.1.%[1]d/24 dev eth0`, `device eth0 lacks address 10.244.1.`},
		{"IPv6 address", `ip address del fd00:10:244:1::%[1]x/64 dev eth0`, `device eth0 lacks address fd00:10:244:1::`},
		{"prefix length", `ip address del 10.244.1.%[1]d/24 dev eth0; ip address add 10.244.1.%[1]d/25 dev eth0; ip route add default via 10.244.1.1`, `device eth0 lacks address 10.244.1.`},
		{"IPv4 route", `ip route del default`, `lacks the route to 0.0.0.0/0 via 10.244.1.1`},
		{"IPv6 route", `ip -6 route del default`, `lacks the route to ::/0 via fd00:10:244:1::1`},
		{"another gateway", `ip route replace default via 10.244.1.9 dev eth0`, `lacks the route to 0.0.0.0/0 via 10.244.1.1`},
		{"down", `ip link set eth0 down`, `device eth0 is down`},
		{"MAC", `ip link set eth0 address 0a:00:00:00:00:99`, `device eth0 has MAC 0a:00:00:00:00:99, the switch knows it by`},
		{"MTU", `ip link set eth0 mtu 1431`, `device eth0 has MTU 1431, its network carries 1430`},
		{"name", `ip link set eth0 down; ip link set eth0 name eth7; ip link set eth7 up`, `device eth0 is called eth7`},
		{"device", `ip link delete eth0`, `device`},
		{"nothing goes in", drop("ingress"), `no answer from 10.244.1.`},
		{"nothing comes out", drop("egress"), `no answer from 10.244.1.`},
		{"no IPv6 goes in", drop("ingress") + `; nft 'flush chain netdev x c; add rule netdev x c ether type != ip6 accept'`, `no answer from fd00:10:244:1::`},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := fmt.Sprint("c", i)
			ns, _ := r.add(t, list, id)
			defer r.silent(t, "DEL", id, "", r.byHand("pods", "1.1.0", nil))
			if err := r.CheckNetworkList(t.Context(), list, podConf(ns, id)); err != nil {
				t.Fatalf("right after ADD: %v", err)
			}
			script := c.script
			if strings.Contains(script, "%[1]") {
				script = fmt.Sprintf(script, 3+i)
			}
			in(t, ns, script)
			err := r.CheckNetworkList(t.Context(), list, podConf(ns, id))
			if c.want != "" {
				assertCode(t, err, podapi.CodeBroken, c.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("what the runtime says", r.testCheckOfResult)
}

// A CHECK whose result, namespace or attachment is another's.
func (r *containerRuntime) testCheckOfResult(t *testing.T) {
	list := r.conflist("pods", "1.1.0", nil)
	ns, result := r.add(t, list, "result")
	other, otherResult := r.add(t, list, "other")
	check := func(prev any) map[string]any { return r.byHand("pods", "1.1.0", map[string]any{"prevResult": prev}) }
	without := *result
	without.Routes = nil // as a later plugin may leave it
	in(t, ns, `ip route del default`)
	r.silent(t, "CHECK", "result", ns.Path(), check(&without))
	in(t, ns, `ip route add default via 10.244.1.1`)
	r.silent(t, "CHECK", "result", ns.Path(), check(result))
	r.fails(t, podapi.CodeBroken, "prevResult", "CHECK", "result", ns.Path(), check(otherResult))
	r.fails(t, podapi.CodeBroken, "prevResult has no interface eth0", "CHECK", "result", ns.Path(), check(map[string]any{"cniVersion": "1.1.0"}))
	r.fails(t, podapi.CodeBroken, "not the namespace", "CHECK", "result", other.Path(), check(result))
	r.fails(t, podapi.CodeUnknown, "never added", "CHECK", "unknown", ns.Path(), check(result))
	r.fails(t, podapi.CodeInvalidConf, "prevResult", "CHECK", "result", ns.Path(), r.byHand("pods", "1.1.0", nil))
	r.fails(t, podapi.CodeDecode, "prevResult", "CHECK", "result", ns.Path(), check("x"))
	r.fails(t, podapi.CodeEnvironment, "CNI_NETNS", "CHECK", "result", "/run/netns/gone", check(result))
	for _, id := range []string{"result", "other"} {
		r.silent(t, "DEL", id, "", r.byHand("pods", "1.1.0", nil))
	}
}

// On a segment without addresses a pod is asked for those that it brings along.
func TestCNICheckWithoutAddresses(t *testing.T) {
	r := newRuntime(t, "mode: l2")
	defer r.start()(unix.SIGTERM)
	list := r.conflist("pods", "1.1.0", nil)
	ns, _ := r.add(t, list, "c1")
	check := func() error { return r.CheckNetworkList(t.Context(), list, podConf(ns, "c1")) }
	if err := check(); err != nil {
		t.Error(err)
	}
	in(t, ns, `ip address add 192.0.2.7/24 dev eth0; ip address add 2001:db8::7/64 dev eth0 nodad`)
	if err := check(); err != nil {
		t.Error(err)
	}
	in(t, ns, `nft 'add table netdev x; add chain netdev x c { type filter hook ingress device eth0 priority 0; policy drop; }'`)
	assertCode(t, check(), podapi.CodeBroken, "no answer from 192.0.2.7")
	in(t, ns, `ip link set eth0 down`)
	assertCode(t, check(), podapi.CodeBroken, "eth0 is down")
	r.silent(t, "DEL", "c1", "", r.byHand("pods", "1.1.0", nil))
}

// A full pool: ADD may be tried again later, STATUS says so beforehand, and both name the pool. An agent that is down can
// do neither.
func TestCNIStatus(t *testing.T) {
	r := newRuntime(t, "podSubnets: [10.244.1.0/29]\nnetworks: [{name: blue, vni: 7, l2: local, subnets: [10.9.0.0/24], ranges: [10.9.0.8/31]}]")
	list, blue := r.conflist("pods", "1.1.0", nil), r.conflist("blue", "1.1.0", map[string]any{"network": "blue"})
	assertCode(t, r.GetStatusNetworkList(t.Context(), list), podapi.CodeNotAvailable, "systemctl status tapyard")
	stop := r.start()
	for _, c := range []struct {
		list *libcni.NetworkConfigList
		pool string
		size int
	}{{list, "10.244.1.0/29", 4}, {blue, "10.9.0.8/31", 2}} {
		var ids []string
		for len(ids) < c.size {
			if err := r.GetStatusNetworkList(t.Context(), c.list); err != nil {
				t.Error(err)
			}
			ids = append(ids, fmt.Sprint(c.list.Name, len(ids)))
			r.add(t, c.list, ids[len(ids)-1])
		}
		assertCode(t, r.GetStatusNetworkList(t.Context(), c.list), podapi.CodeNotAvailable, c.pool)
		_, err := r.AddNetworkList(t.Context(), c.list, podConf(nstest.New(t), "more"))
		assertCode(t, err, podapi.CodeTryAgain, c.pool)
		r.silent(t, "DEL", ids[0], "", r.byHand("pods", "1.1.0", nil))
		if err := r.GetStatusNetworkList(t.Context(), c.list); err != nil {
			t.Error(err)
		}
	}
	assertCode(t, r.GetStatusNetworkList(t.Context(), r.conflist("red", "1.1.0", map[string]any{"network": "red"})), podapi.CodeInvalidConf, "red")
	stop(unix.SIGTERM)
	assertCode(t, r.GetStatusNetworkList(t.Context(), list), podapi.CodeNotAvailable, r.socket())
}

// STATUS knows what this node's kernel knows of the peers: no carrier, a next hop that doesn't answer, no route, no address.
func TestCNIStatusOfPeers(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { testStatusOfPeers(t, "192.168.1.", "24") })
	t.Run("IPv6", func(t *testing.T) { testStatusOfPeers(t, "fd00:192:168:1::", "64") })
}

func testStatusOfPeers(t *testing.T, net, bits string) {
	r := newRuntime(t, dualStack+"\nunderlay: ['"+net+"11']")
	lan := nstest.New(t)
	address := func(verb, host, dev string) string {
		script := "ip address " + verb + " " + net + host + "/" + bits + " dev " + dev
		if verb == "add" && bits == "64" {
			script += " nodad"
		}
		return script
	}
	in(t, r.node, `ip address flush dev lo; ip address add 127.0.0.1/8 dev lo; ip link add under type veth peer name lan netns `+lan.Name()+`
		ip link set under up; `+address("add", "11", "under"))
	in(t, lan, `ip link set lan up; `+address("add", "12", "lan"))
	peers := fmt.Sprintf(`{clusterCIDRs: [10.244.0.0/16, "fd00:10:244::/48"], peers: [
		{name: n2, underlay: ["%[1]s12"], podSubnets: [10.244.2.0/24]}, {name: n3, underlay: ["%[1]s13"], podSubnets: [10.244.3.0/24]}]}`, net)
	if err := os.WriteFile(filepath.Join(r.dir, "peers.yaml"), []byte(peers), 0o600); err != nil {
		t.Fatal(err)
	}
	defer r.start()(unix.SIGTERM)
	list := r.conflist("pods", "1.1.0", nil)
	is := func(want string) {
		t.Helper()
		eventually(t, "STATUS: "+want, func() bool {
			err := r.GetStatusNetworkList(t.Context(), list)
			e := (*types.Error)(nil)
			return want == "" && err == nil || want != "" && errors.As(err, &e) && e.Code == podapi.CodeLimited && strings.Contains(e.Msg, want)
		})
	}
	is("") // n3 is down, n2 isn't
	in(t, lan, `ip link set lan down`)
	is("no carrier")
	in(t, lan, `ip link set lan up; ip address flush dev lan; `+address("add", "12", "lan"))
	is("")
	in(t, lan, address("del", "12", "lan"))
	in(t, r.node, `ip neigh flush dev under`)
	is("doesn't answer")
	in(t, lan, address("add", "12", "lan"))
	is("")
	in(t, r.node, `ip route del `+net+`0/`+bits)
	is("ip route get")
	in(t, r.node, address("del", "11", "under"))
	is(net + "11 is on no interface")
	in(t, r.node, address("add", "11", "under"))
	is("")
}

// GC keeps the pods that are listed, and those that another network configuration has added.
func TestCNIGC(t *testing.T) {
	r := newRuntime(t, "podSubnets: [10.244.1.0/29]")
	defer r.start()(unix.SIGTERM)
	list, other := r.conflist("pods", "1.1.0", nil), r.conflist("other", "1.1.0", nil)
	r.add(t, list, "kept")
	stale, _ := r.add(t, list, "stale")
	r.add(t, other, "others")
	noCache := libcni.NewCNIConfigWithCacheDir([]string{r.dir}, filepath.Join(r.dir, "empty"), nil) // or the library would send DEL itself
	gc := func(ids ...string) error {
		args := &libcni.GCArgs{}
		for _, id := range ids {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: "eth0"})
		}
		return noCache.GCNetworkList(t.Context(), list, args)
	}
	left := func(want ...string) {
		t.Helper()
		if got := r.ports(t); !slices.Equal(got, want) {
			t.Errorf("pods left: %v, want %v", got, want)
		}
		var neighbors []observe.Neighbor
		r.show(t, "neighbors", &neighbors)
		if len(neighbors) != 2+len(want) { // gateway and switch
			t.Errorf("neighbors %v with pods %v", neighbors, want)
		}
	}
	if err := gc("kept", "stale"); err != nil {
		t.Error(err)
	}
	left("kept", "others", "stale")
	if err := gc("kept", "unheard-of"); err != nil {
		t.Error(err)
	}
	left("kept", "others")
	in(t, stale, `! ip link show eth0 2>/dev/null`)
	r.add(t, list, "stale") // the pool has four addresses
	r.add(t, list, "last")
	// Each name of the key by itself, the other one's list is none.
	attachments := func(ids ...string) (list []any) {
		for _, id := range ids {
			list = append(list, map[string]any{"containerID": id, "ifname": "eth0"})
		}
		return list
	}
	r.silent(t, "GC", "", "", r.byHand("pods", "1.1.0", map[string]any{"cni.dev/attachments": attachments("kept", "last")}))
	left("kept", "last", "others")
	r.silent(t, "GC", "", "", r.byHand("pods", "1.1.0", map[string]any{"cni.dev/valid-attachments": attachments("kept")}))
	left("kept", "others")
	r.fails(t, podapi.CodeInvalidConf, "cni.dev/attachments", "GC", "", "", r.byHand("pods", "1.1.0", map[string]any{"cni.dev/attachments": "all"}))
	r.fails(t, podapi.CodeInvalidConf, `"name"`, "GC", "", "", r.byHand("", "1.1.0", map[string]any{"cni.dev/attachments": nil}))
	r.silent(t, "GC", "", "", r.byHand("pods", "1.1.0", nil)) // no list at all: nobody has vanished
	left("kept", "others")
	if err := gc(); err != nil {
		t.Error(err)
	}
	left("others")
	r.silent(t, "DEL", "others", "", r.byHand("other", "1.1.0", nil))
}

// The reference tool drives the verbs that it has.
func TestCNITool(t *testing.T) {
	r := newRuntime(t, dualStack)
	tool := filepath.Join(r.dir, "cnitool")
	if out, err := exec.Command("go", "build", "-o", tool, "github.com/containernetworking/cni/cnitool").CombinedOutput(); err != nil {
		t.Fatalf("build cnitool: %v: %s", err, out)
	}
	r.conflist("pods", "1.1.0", nil)
	ns := nstest.New(t)
	cnitool := func(verb string) (string, error) {
		cmd := exec.Command(tool, verb, "pods", ns.Path())
		cmd.Env = append(os.Environ(), "CNI_PATH="+r.dir, "NETCONFPATH="+r.conf)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	quiet := func(verb string) {
		t.Helper()
		if out, err := cnitool(verb); err != nil || out != "" {
			t.Errorf("cnitool %s: %v: %s", verb, err, out)
		}
	}
	if out, err := cnitool("status"); err == nil || !strings.Contains(out, "systemctl status tapyard") {
		t.Errorf("cnitool status without an agent: %v: %s", err, out)
	}
	defer r.start()(unix.SIGTERM)
	for _, end := range []string{"del", "gc"} {
		out, err := cnitool("add")
		var result types100.Result
		if err != nil || json.Unmarshal([]byte(out), &result) != nil || len(result.IPs) != 2 {
			t.Fatalf("cnitool add: %v: %s", err, out)
		}
		quiet("status")
		quiet("check")
		in(t, ns, `ip route del default`)
		if out, err := cnitool("check"); err == nil || !strings.Contains(out, "0.0.0.0/0") {
			t.Errorf("cnitool check: %v: %s", err, out)
		}
		quiet(end)
		in(t, ns, `! ip link show eth0 2>/dev/null`)
	}
	quiet("del")
}
