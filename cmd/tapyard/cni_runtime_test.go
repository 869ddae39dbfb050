package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"tapyard/bench/nstest"
	"tapyard/switch/observe"
)

// containerRuntime is a container runtime, which drives the real plugin by the library, by cnitool or by hand, and the agent of
// its node, which runs in a namespace of its own.
type containerRuntime struct {
	*installed
	*libcni.CNIConfig
	conf string // folder of conflists
}

// newRuntime makes one whose agent doesn't run yet. config are lines of tapyard.yaml beside name and folders; the underlay
// is on lo unless they say otherwise.
func newRuntime(t *testing.T, config string) *containerRuntime {
	t.Helper()
	r := &containerRuntime{installed: install(t)}
	r.conf = filepath.Join(r.dir, "net.d")
	r.CNIConfig = libcni.NewCNIConfigWithCacheDir([]string{r.dir}, filepath.Join(r.dir, "cache"), nil)
	text := fmt.Sprintf("name: n1\npeersFile: %s/peers.yaml\nrunDir: %s\nstateDir: %s\n%s\n", r.dir, r.runDir, r.stateDir, config)
	if !strings.Contains(config, "underlay:") {
		text += "underlay: [192.168.1.11]\n"
	}
	if err := errors.Join(os.WriteFile(r.config, []byte(text), 0o600), os.Mkdir(r.conf, 0o755)); err != nil {
		t.Fatal(err)
	}
	return r
}

const dualStack = "podSubnets: [10.244.1.0/24, 'fd00:10:244:1::/64']"

// conflist writes a network configuration of the plugin alone, with further keys, and of plugins behind it.
func (r *containerRuntime) conflist(name, version string, keys map[string]any, more ...map[string]any) *libcni.NetworkConfigList {
	r.t.Helper()
	own := map[string]any{"type": "tapyard-cni", "socket": r.socket(), "unknown": map[string]any{"a": 1}}
	maps.Copy(own, keys)
	text, err := json.Marshal(map[string]any{"cniVersion": version, "name": name, "plugins": append([]map[string]any{own}, more...)})
	if err == nil {
		err = os.WriteFile(filepath.Join(r.conf, name+".conflist"), text, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(text)
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

func (r *containerRuntime) socket() string { return filepath.Join(r.runDir, "cni.sock") }

func podConf(ns *nstest.NS, id string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: ns.Path(), IfName: "eth0", Args: [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", id}}}
}

// add attaches a pod in a namespace of its own.
func (r *containerRuntime) add(t *testing.T, list *libcni.NetworkConfigList, id string) (*nstest.NS, *types100.Result) {
	t.Helper()
	ns := nstest.New(t)
	raw, err := r.AddNetworkList(t.Context(), list, podConf(ns, id))
	if err != nil {
		t.Fatal(err)
	}
	result, err := types100.GetResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	return ns, result
}

// exec runs the plugin by hand. Empty variables are left out.
func (r *containerRuntime) exec(t *testing.T, verb, id, netns string, conf map[string]any) (stdout string, code int) {
	t.Helper()
	stdin, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(r.dir, "tapyard-cni"))
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_PATH=" + r.dir}
	for _, v := range [][2]string{{"CNI_CONTAINERID", id}, {"CNI_NETNS", netns}} {
		if v[1] != "" {
			cmd.Env = append(cmd.Env, v[0]+"="+v[1])
		}
	}
	if id != "" {
		cmd.Env = append(cmd.Env, "CNI_IFNAME=eth0")
	}
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// byHand is the configuration that a runtime derives.
func (r *containerRuntime) byHand(name, version string, more map[string]any) map[string]any {
	conf := map[string]any{"cniVersion": version, "name": name, "type": "tapyard-cni", "socket": r.socket()}
	maps.Copy(conf, more)
	return conf
}

// silent asserts that the plugin, run by hand, succeeds and prints nothing.
func (r *containerRuntime) silent(t *testing.T, verb, id, netns string, conf map[string]any) {
	t.Helper()
	if out, code := r.exec(t, verb, id, netns, conf); code != 0 || out != "" {
		t.Errorf("%s %s: exit code %d, output %q; want 0 and none", verb, id, code, out)
	}
}

// fails asserts that the plugin, run by hand, says why, in the form and with a code of the specification.
func (r *containerRuntime) fails(t *testing.T, code uint, want, verb, id, netns string, conf map[string]any) {
	t.Helper()
	out, exit := r.exec(t, verb, id, netns, conf)
	assertFailure(t, verb, []byte(out), exit, code, want)
}

func assertFailure(t *testing.T, verb string, out []byte, exit int, code uint, want string) {
	t.Helper()
	var e struct {
		CNIVersion, Msg, Details string
		Code                     uint
	}
	if err := json.Unmarshal(out, &e); err != nil || exit != 1 || e.Code != code || e.CNIVersion == "" || !strings.Contains(e.Msg+e.Details, want) {
		t.Errorf("%s: exit code %d, %v, output %s\nwant code %d with %q", verb, exit, err, out, code, want)
	}
}

// assertCode does the same for what the library made of it.
func assertCode(t *testing.T, err error, code uint, want string) {
	t.Helper()
	e := (*types.Error)(nil)
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Msg+e.Details, want) {
		t.Errorf("error %v, want code %d with %q", err, code, want)
	}
}

// ports returns the names of the pods' ports, as the switch has them.
func (r *containerRuntime) ports(t *testing.T) (names []string) {
	t.Helper()
	var ports []observe.Port
	r.show(t, "ports", &ports)
	for _, p := range ports {
		if strings.HasPrefix(p.Name, "default/") {
			names = append(names, strings.TrimPrefix(p.Name, "default/"))
		}
	}
	slices.Sort(names)
	return names
}

func (r *containerRuntime) show(t *testing.T, view string, out any) {
	t.Helper()
	text := r.must("show", view, "--socket", filepath.Join(r.runDir, "admin.sock"), "-o", "json")
	if err := json.Unmarshal([]byte(text), out); err != nil {
		t.Fatal(err)
	}
}

func in(t *testing.T, ns *nstest.NS, script string) {
	t.Helper()
	if out, err := ns.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}
