package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types040 "github.com/containernetworking/cni/pkg/types/040"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
	"tapyard/switch/attach"
	"tapyard/switch/port"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// node is the agent's side and a runtime that uses the real plugin.
type node struct {
	dir string
	cni *libcni.CNIConfig
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{dir: t.TempDir()}
	build := exec.Command("go", "build", "-o", filepath.Join(n.dir, "tapyard-cni"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v: %s", err, out)
	}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{n.dir}, filepath.Join(n.dir, "cache"), nil)
	return n
}

// start runs an agent; the function that it returns stops it.
func (n *node) start(t *testing.T) (stop func()) {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	m, err := attach.Open(attach.Config{
		StateDir: filepath.Join(n.dir, "state"), VNI: 1, MTU: func() int { return 1430 }, Log: quiet,
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		Publish:  func(attach.Attachment, port.Port) error { return nil },
		Withdraw: func(context.Context, attach.Attachment) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", n.socket())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- (&podapi.Server{Handler: m, Log: quiet}).Serve(ctx, l) }()
	return func() {
		cancel()
		if err := errors.Join(<-ended, m.Close()); err != nil {
			t.Error(err)
		}
	}
}

func (n *node) socket() string { return filepath.Join(n.dir, "cni.sock") }

func (n *node) network(t *testing.T, version string) *libcni.NetworkConfigList {
	t.Helper()
	list, err := libcni.NetworkConfFromBytes([]byte(fmt.Sprintf(
		`{"cniVersion":%q,"name":"pods","plugins":[{"type":"tapyard-cni","socket":%q,"unknown":{"a":1}}]}`, version, n.socket())))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func pod(ns *nstest.NS, id string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: ns.Path(), IfName: "eth0", Args: [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", id}}}
}

func devices(t *testing.T, ns *nstest.NS) (names []string) {
	t.Helper()
	out, err := ns.Command("ip", "-j", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	var links []struct{ IfName, Address string }
	if err := json.Unmarshal(out, &links); err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		names = append(names, l.IfName+" "+l.Address)
	}
	return names
}

const loAlone = "[lo 00:00:00:00:00:00]"

func TestVersion(t *testing.T) {
	n := newNode(t)
	info, err := n.cni.GetVersionInfo(t.Context(), "tapyard-cni")
	if want := []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}; err != nil || !slices.Equal(info.SupportedVersions(), want) {
		t.Errorf("versions %v, %v; want %v", info, err, want)
	}
	if versions, err := n.cni.ValidateNetworkList(t.Context(), n.network(t, "1.1.0")); err != nil {
		t.Errorf("the library does not take the configuration: %v, %v", versions, err)
	}
}

// For each version that the plugin names, the library understands the result of ADD, and it is true.
func TestAddAndDel(t *testing.T) {
	n := newNode(t)
	defer n.start(t)()
	for i, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			ns, network := nstest.New(t), n.network(t, version)
			rt := pod(ns, fmt.Sprint("web-", i))
			raw, err := n.cni.AddNetworkList(t.Context(), network, rt)
			if err != nil {
				t.Fatal(err)
			}
			if raw.Version() != version {
				t.Errorf("the result has version %s", raw.Version())
			}
			if old, ok := raw.(*types040.Result); ok && (len(old.IPs) != 2 || old.IPs[0].Version != "4" || old.IPs[1].Version != "6") {
				t.Errorf("old result %+v", old)
			}
			assertResult(t, raw, ns, version, 3+i)
			_, err = n.cni.AddNetworkList(t.Context(), network, rt)
			if e := (*types.Error)(nil); !errors.As(err, &e) || e.Code != types.ErrInvalidEnvironmentVariables {
				t.Errorf("a second ADD: %v", err)
			}
			for range 2 {
				if err := n.cni.DelNetworkList(t.Context(), network, rt); err != nil {
					t.Error(err)
				}
				if d := devices(t, ns); fmt.Sprint(d) != loAlone {
					t.Errorf("devices after DEL: %v", d)
				}
			}
		})
	}
}

func assertResult(t *testing.T, raw types.Result, ns *nstest.NS, version string, host int) {
	t.Helper()
	r, err := types100.GetResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Interfaces) != 1 || len(r.IPs) != 2 || len(r.Routes) != 2 {
		t.Fatalf("result %+v", r)
	}
	dev, mtu := r.Interfaces[0], 0
	if version == "1.1.0" {
		mtu = 1430
	}
	if !slices.Contains(devices(t, ns), "eth0 "+dev.Mac) || dev.Name != "eth0" || dev.Sandbox != ns.Path() || dev.Mtu != mtu {
		t.Errorf("interface %+v, the pod has %v", dev, devices(t, ns))
	}
	for i, want := range [][4]string{{fmt.Sprint("10.244.1.", host, "/24"), "10.244.1.1", "0.0.0.0/0"}, {fmt.Sprintf("fd00:10:244:1::%x/64", host), "fd00:10:244:1::1", "::/0"}} {
		ip, route := r.IPs[i], r.Routes[i]
		if ip.Address.String() != want[0] || ip.Gateway.String() != want[1] || ip.Interface == nil || *ip.Interface != 0 {
			t.Errorf("address %v, want %v", ip, want)
		}
		if route.Dst.String() != want[2] || route.GW.String() != want[1] {
			t.Errorf("route %v, want %v", route, want)
		}
	}
}

// Over a stop of the agent: its pods stay, ADD asks for patience, DEL is kept for the next start.
func TestAgentDown(t *testing.T) {
	n := newNode(t)
	kept, deleted, refused, network := nstest.New(t), nstest.New(t), nstest.New(t), n.network(t, "1.1.0")
	stop := n.start(t)
	for id, ns := range map[string]*nstest.NS{"kept": kept, "deleted": deleted} {
		if _, err := n.cni.AddNetworkList(t.Context(), network, pod(ns, id)); err != nil {
			t.Fatal(err)
		}
	}
	before := devices(t, kept)
	stop()
	_, err := n.cni.AddNetworkList(t.Context(), network, pod(refused, "refused"))
	if e := (*types.Error)(nil); !errors.As(err, &e) || e.Code != types.ErrTryAgainLater || !strings.Contains(e.Msg, n.socket()) {
		t.Errorf("ADD: %v", err)
	}
	if err := n.cni.DelNetworkList(t.Context(), network, pod(deleted, "deleted")); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if d := devices(t, deleted); len(d) != 2 {
		t.Errorf("nobody ran, but the pod has %v", d)
	}
	defer n.start(t)()
	// The answer to this comes after the tombstones.
	if err := n.cni.DelNetworkList(t.Context(), network, pod(refused, "refused")); err != nil {
		t.Error(err)
	}
	if d := devices(t, deleted); fmt.Sprint(d) != loAlone {
		t.Errorf("the deleted pod has %v", d)
	}
	if d := devices(t, kept); !slices.Equal(d, before) {
		t.Errorf("the other pod had %v and has %v", before, d)
	}
	if left, _ := os.ReadDir(podapi.TombstoneDir(n.socket())); len(left) > 0 {
		t.Errorf("tombstones left: %v", left)
	}
	if err := n.cni.DelNetworkList(t.Context(), network, pod(kept, "kept")); err != nil {
		t.Error(err)
	}
}
