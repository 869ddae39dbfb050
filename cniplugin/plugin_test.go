package cniplugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tapyard/cniplugin/podapi"
)

// answering is an agent that gives one answer and remembers what it was asked.
type answering struct {
	result json.RawMessage
	err    error

	mu    sync.Mutex
	asked []podapi.Request
	netns []bool
}

func (a *answering) Handle(_ context.Context, r *podapi.Request, netns int) (json.RawMessage, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked, a.netns = append(a.asked, *r), append(a.netns, netns >= 0)
	return a.result, a.err
}

// serve runs the agent behind a socket until the test ends.
func serve(t *testing.T, socket string, h podapi.Handler, wrap func(net.Listener) net.Listener) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("NETNS_REQUIRED") == "1" {
			t.Fatal("the agent answers root only: run the tests as root")
		}
		t.Skip("the agent answers root only: run the tests as root")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- (&podapi.Server{Handler: h, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, wrap(l)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func unwrapped(l net.Listener) net.Listener { return l }

// runtime is what a container runtime gives to the plugin.
type runtime struct {
	env    map[string]string
	conf   string
	socket string
}

func newRuntime(t *testing.T, command string) *runtime {
	t.Helper()
	dir := t.TempDir()
	ns := filepath.Join(dir, "netns")
	if err := os.WriteFile(ns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := &runtime{socket: filepath.Join(dir, "cni.sock")}
	r.env = map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": ns, "CNI_IFNAME": "eth0", "CNI_ARGS": "K8S_POD_NAME=a", "CNI_PATH": "/opt/cni/bin"}
	r.conf = fmt.Sprintf(`{"cniVersion":"1.0.0","name":"pods","type":"tapyard-cni","socket":%q,"unknown":[1,{"x":"<&>"}]}`, r.socket)
	return r
}

func (r *runtime) run(ctx context.Context) (stdout string, code int) {
	var out bytes.Buffer
	code = Run(ctx, func(name string) string { return r.env[name] }, strings.NewReader(r.conf), &out)
	return out.String(), code
}

// failure is the error form of the CNI specification, decoded strictly.
type failure struct {
	CNIVersion   string `json:"cniVersion"`
	Code         uint   `json:"code"`
	Msg, Details string
}

func (r *runtime) mustFail(t *testing.T, ctx context.Context) failure {
	t.Helper()
	out, code := r.run(ctx)
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	var f failure
	if err := d.Decode(&f); err != nil || code != 1 || f.Msg == "" || f.CNIVersion == "" {
		t.Fatalf("exit code %d, output %q: %v; want 1 and an error", code, out, err)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Fatalf("more than one value in %q", out)
	}
	return f
}

func TestAdd(t *testing.T) {
	r := newRuntime(t, "ADD")
	agent := &answering{result: json.RawMessage(`{"cniVersion":"1.0.0","interfaces":[]}`)}
	serve(t, r.socket, agent, unwrapped)
	out, code := r.run(t.Context())
	if code != 0 || out != string(agent.result)+"\n" {
		t.Errorf("exit code %d, output %q", code, out)
	}
	var sent, got any
	got1 := agent.asked[0]
	if err := json.Unmarshal(got1.Stdin, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(r.conf), &sent); err != nil || fmt.Sprint(sent) != fmt.Sprint(got) {
		t.Errorf("the agent got the configuration %s, want %s", got1.Stdin, r.conf)
	}
	got1.Stdin = nil
	want := podapi.Request{Version: podapi.Version, Command: "ADD", ContainerID: "c1", IfName: "eth0", Netns: r.env["CNI_NETNS"], Args: "K8S_POD_NAME=a", Path: "/opt/cni/bin"}
	if fmt.Sprint(got1) != fmt.Sprint(want) || !agent.netns[0] {
		t.Errorf("the agent got %+v, with a namespace: %t; want %+v", got1, agent.netns[0], want)
	}
	agent.err = &podapi.Error{Code: 107, Msg: "no", Details: "way"}
	if f := r.mustFail(t, t.Context()); f != (failure{"1.0.0", 107, "no", "way"}) {
		t.Errorf("failure %+v", f)
	}
}

// A DEL prints nothing, and needs the namespace neither named nor present.
func TestDel(t *testing.T) {
	r := newRuntime(t, "DEL")
	agent := &answering{}
	serve(t, r.socket, agent, unwrapped)
	for _, ns := range []string{r.env["CNI_NETNS"], "/run/netns/gone", ""} {
		r.env["CNI_NETNS"] = ns
		if out, code := r.run(t.Context()); code != 0 || out != "" {
			t.Errorf("CNI_NETNS %q: exit code %d, output %q", ns, code, out)
		}
	}
	if !slices.Equal(agent.netns, []bool{true, false, false}) {
		t.Errorf("the agent got a namespace: %v", agent.netns)
	}
}

// CHECK brings the namespace; STATUS and GC need no pod's names, and none gets past the socket. None prints anything.
func TestSilentVerbs(t *testing.T) {
	r := newRuntime(t, "")
	r.conf = strings.Replace(r.conf, "1.0.0", "1.1.0", 1)
	agent := &answering{}
	serve(t, r.socket, agent, unwrapped)
	for i, verb := range []string{"CHECK", "STATUS", "GC", "STATUS"} {
		if i == 2 {
			r.env = map[string]string{"CNI_PATH": "/opt/cni/bin"}
		} else if i == 3 {
			r.env["CNI_CONTAINERID"], r.env["CNI_IFNAME"] = "../x", "a/b"
		}
		r.env["CNI_COMMAND"] = verb
		if out, code := r.run(t.Context()); code != 0 || out != "" {
			t.Errorf("%s: exit code %d, output %q", verb, code, out)
		}
		got := agent.asked[i]
		if check := verb == "CHECK"; got.Command != verb || (got.ContainerID == "c1" && got.IfName == "eth0") != check || agent.netns[i] != check ||
			!strings.Contains(string(got.Stdin), `"unknown":[1,`) || !check && got.ContainerID+got.IfName != "" {
			t.Errorf("the agent got %+v, with a namespace: %t", got, agent.netns[i])
		}
	}
}

func TestErrors(t *testing.T) {
	unset := func(names ...string) func(*runtime) {
		return func(r *runtime) { maps.DeleteFunc(r.env, func(k, _ string) bool { return slices.Contains(names, k) }) }
	}
	conf := func(s string) func(*runtime) { return func(r *runtime) { r.conf = s } }
	version11 := func(r *runtime) { r.conf = strings.Replace(r.conf, "1.0.0", "1.1.0", 1) }
	for _, c := range []struct {
		name    string
		command string
		change  func(*runtime)
		code    uint
		want    []string
	}{
		{"no command", "ADD", unset("CNI_COMMAND"), podapi.CodeEnvironment, []string{"CNI_COMMAND"}},
		{"unknown command", "FLY", unset(), podapi.CodeEnvironment, []string{"CNI_COMMAND", "FLY", "ADD, CHECK, DEL, GC, STATUS, VERSION"}},
		{"ADD without", "ADD", unset("CNI_NETNS", "CNI_IFNAME"), podapi.CodeEnvironment, []string{"CNI_NETNS", "CNI_IFNAME"}},
		{"DEL without", "DEL", unset("CNI_CONTAINERID"), podapi.CodeEnvironment, []string{"CNI_CONTAINERID"}},
		{"CHECK without", "CHECK", unset("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), podapi.CodeEnvironment, []string{"CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"}},
		{"CHECK before its time", "CHECK", conf(`{"cniVersion":"0.3.1"}`), podapi.CodeVersion, []string{"0.3.1", "CHECK", "0.4.0"}},
		{"GC before its time", "GC", conf(`{"cniVersion":"1.0.0"}`), podapi.CodeVersion, []string{"1.0.0", "GC", "1.1.0"}},
		{"STATUS before its time", "STATUS", conf(`{"cniVersion":"0.4.0"}`), podapi.CodeVersion, []string{"0.4.0", "STATUS", "1.1.0"}},
		{"no namespace", "ADD", func(r *runtime) { r.env["CNI_NETNS"] = "/nowhere" }, podapi.CodeEnvironment, []string{"CNI_NETNS", "/nowhere"}},
		{"hostile id", "DEL", func(r *runtime) { r.env["CNI_CONTAINERID"] = "../x" }, podapi.CodeEnvironment, []string{"CNI_CONTAINERID", "../x"}},
		{"hostile interface", "ADD", func(r *runtime) { r.env["CNI_IFNAME"] = "a/b" }, podapi.CodeEnvironment, []string{"CNI_IFNAME", "a/b"}},
		{"no JSON", "ADD", conf("{"), podapi.CodeDecode, []string{"configuration"}},
		{"nothing", "VERSION", conf(""), podapi.CodeDecode, []string{"configuration"}},
		{"too old", "ADD", conf(`{"cniVersion":"0.3.0"}`), podapi.CodeVersion, []string{"0.3.0", "0.3.1, 0.4.0, 1.0.0, 1.1.0"}},
		{"no version", "DEL", conf(`{}`), podapi.CodeVersion, []string{"incompatible"}},
		{"a relative socket", "ADD", conf(`{"cniVersion":"1.0.0","socket":"cni.sock"}`), podapi.CodeInvalidConf, []string{`"socket"`, "cni.sock"}},
		{"too long", "ADD", conf(`"` + strings.Repeat("x", podapi.MaxMessage) + `"`), podapi.CodeInvalidConf, []string{"1048576"}},
		{"agent down", "ADD", unset(), podapi.CodeTryAgain, []string{"cni.sock", "not running", "systemctl status tapyard", `"socket"`}},
		{"agent down", "CHECK", unset(), podapi.CodeTryAgain, []string{"cni.sock", "not running"}},
		{"agent down", "GC", version11, podapi.CodeTryAgain, []string{"cni.sock", "not running"}},
		{"agent down", "STATUS", version11, podapi.CodeNotAvailable, []string{"cni.sock", "not running", "systemctl status tapyard"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRuntime(t, c.command)
			c.change(r)
			f := r.mustFail(t, t.Context())
			if f.Code != c.code {
				t.Errorf("code %d, want %d", f.Code, c.code)
			}
			for _, w := range c.want {
				if !strings.Contains(f.Msg+f.Details, w) {
					t.Errorf("%+v does not say %q", f, w)
				}
			}
		})
	}
}

// An agent that takes the request and stays silent is not waited for by a DEL's tombstone: the runtime
// repeats.
func TestSilentAgent(t *testing.T) {
	for command, code := range map[string]uint{"ADD": podapi.CodeTryAgain, "DEL": podapi.CodeTryAgain, "STATUS": podapi.CodeNotAvailable} {
		r := newRuntime(t, command)
		r.conf = strings.Replace(r.conf, "1.0.0", "1.1.0", 1)
		l, err := net.Listen("unix", r.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if f := r.mustFail(t, ctx); f.Code != code || !strings.Contains(f.Msg, r.socket) {
			t.Errorf("%s: %+v", command, f)
		}
	}
}

func tombstones(t *testing.T, r *runtime) int {
	t.Helper()
	entries, err := os.ReadDir(podapi.TombstoneDir(r.socket))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(entries)
}

func TestDelWhileTheAgentIsDown(t *testing.T) {
	r := newRuntime(t, "DEL")
	for range 2 {
		if out, code := r.run(t.Context()); code != 0 || out != "" || tombstones(t, r) != 1 {
			t.Fatalf("exit code %d, output %q, %d tombstones", code, out, tombstones(t, r))
		}
	}
	agent := &answering{}
	serve(t, r.socket, agent, unwrapped)
	r.env["CNI_COMMAND"] = "ADD" // answered after the tombstones
	r.run(t.Context())
	if len(agent.asked) != 2 || agent.asked[0].Command != "DEL" || agent.asked[0].ContainerID != "c1" || tombstones(t, r) != 0 {
		t.Errorf("the agent got %+v, %d tombstones are left", agent.asked, tombstones(t, r))
	}
}

// dying hangs up on its first client, as an agent that is killed.
type dying struct {
	net.Listener
	once sync.Once
}

func (d *dying) Accept() (net.Conn, error) {
	d.once.Do(func() {
		if c, err := d.Listener.Accept(); err == nil {
			c.Close()
		}
	})
	return d.Listener.Accept()
}

// An agent that comes up between the failed DEL and its tombstone is asked once more.
func TestDelWhileTheAgentRestarts(t *testing.T) {
	r := newRuntime(t, "DEL")
	agent := &answering{}
	serve(t, r.socket, agent, func(l net.Listener) net.Listener { return &dying{Listener: l} })
	if out, code := r.run(t.Context()); code != 0 || out != "" || len(agent.asked) != 1 || tombstones(t, r) != 0 {
		t.Errorf("exit code %d, output %q, asked %v, %d tombstones", code, out, agent.asked, tombstones(t, r))
	}
}

func TestDelThatCantLeaveATombstone(t *testing.T) {
	r := newRuntime(t, "DEL")
	if err := os.WriteFile(podapi.TombstoneDir(r.socket), nil, 0o600); err != nil { // a file where the folder should be
		t.Fatal(err)
	}
	if f := r.mustFail(t, t.Context()); f.Code != podapi.CodeTryAgain || !strings.Contains(f.Msg, "tombstone") || !strings.Contains(f.Details, "not running") {
		t.Errorf("failure %+v", f)
	}
}
