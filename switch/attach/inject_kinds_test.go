package attach

import (
	"context"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	"tapyard/cniplugin/podapi"
	"tapyard/switch/port"
)

// longEnv is set by `make test-long`.
const longEnv = "TAPYARD_LONG"

// kind is what is asked for a pod, of which each step may have to be undone.
type kind struct {
	portType string
	queues   int
	whole    bool // addresses by host-local, ports of the node, limits of bandwidth; the switch is a real one
}

// withQueues behind TAP has an agent give pods two queues.
const withQueues = " with queues"

func (k kind) String() string {
	s := k.portType
	if k.queues > 1 {
		s += withQueues
	}
	if k.whole {
		s += " and all"
	}
	return s
}

// kinds are those that tests go through: two plain ones, and three that have it all.
var kinds = []kind{{TAP, 1, false}, {Veth, 1, false}, {TAP, 1, true}, {TAP, 2, true}, {Veth, 1, true}}

func kindNamed(name string) kind {
	for _, k := range append(kinds, kind{TAP, 2, false}) {
		if k.String() == name {
			return k
		}
	}
	panic("no pods of kind " + name)
}

// eachKind goes through all of them, and in a short test through a plain one and one that has it all.
func eachKind(t *testing.T, test func(*testing.T, kind)) {
	some := kinds
	if testing.Short() {
		rng := seed.Rand(t)
		some = []kind{kinds[rng.IntN(2)], kinds[2+rng.IntN(3)]}
	}
	for _, k := range some {
		t.Run(k.String(), func(t *testing.T) { test(t, k) })
	}
}

// realSwitch is a switch with its tables.
type realSwitch interface {
	AddPod(Attachment, port.Port) error
	RemovePod(context.Context, Attachment) error
	ProbePod(context.Context, Attachment, []netip.Addr) error
	Traces() string // a line for each thing that pods have
	Stop() error
}

// newSwitch is switch_test.go's.
var newSwitch func(Config) (realSwitch, error)

// configure makes a node fit for pods of the kind.
func (k kind) configure(c *Config, m func() *Manager) {
	if k.portType != "" {
		c.PortType = k.portType
	}
	if k.queues > 0 {
		c.Queues, c.Steering = k.queues, port.NewSteering(2)
	}
	if k.whole {
		c.Networks = []Network{{Name: "blue", VNI: 7}}
		c.MapPorts = func() error {
			return SetPorts(EgressConfig{PodSubnets: c.Subnets, PortsOnly: true, Ports: m().Mapped()})
		}
	}
}

// pluginsEnv tells processes of this test where the reference plugins are.
const pluginsEnv = "CNI_PATH"

// conf is the network configuration; given is where host-local keeps what it has given. An empty socket is left out.
func (k kind) conf(t *testing.T, given, socket string) json.RawMessage {
	t.Helper()
	c := map[string]any{"cniVersion": "1.1.0", "name": "pods", "type": "tapyard", "cni.dev/valid-attachments": []any{}}
	if socket != "" {
		c["socket"] = socket
	}
	if k.whole {
		t.Setenv(pluginsEnv, nstest.CNIPlugins(t))
		c["ipam"] = map[string]any{"type": "host-local", "dataDir": given, "ranges": json.RawMessage(severalRanges)}
		c["capabilities"] = map[string]bool{"portMappings": true, "bandwidth": true}
		c["runtimeConfig"] = map[string]any{
			"portMappings": []any{map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, map[string]any{"hostPort": 53, "containerPort": 53, "protocol": "udp"}},
			"bandwidth":    Bandwidth{1 << 30, 1 << 30, 1 << 30, 1 << 30},
		}
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// severalRanges are those of kind.conf: an address of each family, and one beside the pod subnets.
const severalRanges = `[[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.30"}], [{"subnet": "fd00:10:244:1::/64", "rangeStart": "fd00:10:244:1::30"}],
	[{"subnet": "172.30.0.0/24"}]]`

// request is what a runtime asks for a pod of the node's kind.
func (n *node) request(t *testing.T, ns *nstest.NS, id string) Request {
	t.Helper()
	req := reqFor(ns, id)
	if n.kind.whole {
		var err error
		if req.Conf, err = parseConf(n.kind.conf(t, n.given, ""), "", nstest.CNIPlugins(t)); err != nil {
			t.Fatal(err)
		}
	}
	return req
}

// addAsked attaches a pod of the node's kind, which has all that its kind asks for.
func (n *node) addAsked(t *testing.T, ns *nstest.NS, id string) {
	t.Helper()
	if _, err := n.Add(t.Context(), n.request(t, ns, id)); err != nil {
		t.Fatal(err)
	}
	if !n.kind.whole {
		return
	}
	assertGiven(t, n.given, 3)
	assertPorts(t, true)
	for _, trace := range []string{"port c1\n", "route 1 10.244.1.", "route 1 fd00:10:244:1::", "route 1 172.30.0.", "fdb 1 ", "neighbor 1 172.30.0."} {
		if traces := n.served.Traces(); !strings.Contains(traces, trace) {
			t.Errorf("the switch lacks %q: %s", trace, traces)
		}
	}
}

// assertGiven asks host-local's files how many addresses it has given.
func assertGiven(t *testing.T, dir string, want int) {
	t.Helper()
	if have := given(t, dir); len(have) != want {
		t.Errorf("host-local has given %v, want %d addresses", have, want)
	}
}

// assertPorts asks the nft tool for the rules of the mappings of kind.conf.
func assertPorts(t *testing.T, mapped bool) {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, rule := range []string{"tcp dport 8080 dnat ip to 10.244.1.", "udp dport 53 dnat ip to 10.244.1.", "dnat ip6 to [fd00:10:244:1::"} {
		if strings.Contains(string(out), rule) != mapped {
			t.Errorf("a rule with %q is there: %t, in\n%s", rule, !mapped, out)
		}
	}
}

// assertNotServed is assertNothing of what is behind the Manager.
func (n *node) assertNotServed(t *testing.T) {
	t.Helper()
	if n.given != "" {
		assertGiven(t, n.given, 0)
	}
	if n.served != nil {
		if traces := n.served.Traces(); traces != "" {
			t.Errorf("the switch has %s", traces)
		}
	}
}

// soon gives the kernel a few seconds: devices may go after their DEL was answered.
func soon(done func() bool) {
	for end := time.Now().Add(5 * time.Second); !done() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// assertEmpty says that a pod has no device but lo.
func assertEmpty(t *testing.T, ns *nstest.NS) {
	t.Helper()
	var links map[string]ipLink
	soon(func() bool { links = linksOf(t, ns); return len(links) == 1 })
	if len(links) != 1 || links["lo"].Name == "" {
		t.Errorf("devices in the pod %s: %v", ns.Name(), links)
	}
}

// assertNoTombstones looks beside the socket.
func assertNoTombstones(t *testing.T, socket string) {
	t.Helper()
	files, err := os.ReadDir(podapi.TombstoneDir(socket))
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(files) > 0 {
		t.Errorf("tombstones %v, %v", files, err)
	}
}

// some returns all of the ways to go on behind step i, or, unless the test may be long, one: each comes with some step
// of each kind of pod.
func some[T any](k kind, i int, all []T) []T {
	if os.Getenv(longEnv) != "" {
		return all
	}
	at := (i + slices.Index(kinds, k)) % len(all)
	return all[at : at+1]
}

// Steps are in what the tests below go through; one that no kind of pod comes by would go untested.
func TestEveryStepIsGoneThrough(t *testing.T) {
	gone := map[string]bool{}
	for _, k := range kinds {
		add, del := stepsOfKind(t, k)
		for _, step := range append(add, del...) {
			gone[step] = true
		}
	}
	inCode := stepsInCode(t)
	if have := slices.Sorted(maps.Keys(gone)); !slices.Equal(have, inCode) {
		t.Errorf("of the steps in the code\n%q\nthe kinds of pods go through\n%q", inCode, have)
	}
}

// stepsInCode finds the arguments of Manager.at: a string, or the verb before the names of a table in the same function.
func stepsInCode(t *testing.T) (steps []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name != "at" {
				steps = append(steps, stepsIn(t, fn)...)
			}
		}
	}
	slices.Sort(steps)
	return slices.Compact(steps)
}

func stepsIn(t *testing.T, fn *ast.FuncDecl) (steps []string) {
	t.Helper()
	var table []string
	ast.Inspect(fn, func(n ast.Node) bool {
		if c, ok := n.(*ast.CompositeLit); ok && c.Type == nil && len(c.Elts) > 1 {
			if name, ok := text(c.Elts[0]); ok {
				table = append(table, name)
			}
		}
		return true
	})
	ast.Inspect(fn, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return true
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); !ok || sel.Sel.Name != "at" {
			return true
		}
		if step, ok := text(call.Args[0]); ok {
			steps = append(steps, step)
			return true
		}
		sum, ok := call.Args[0].(*ast.BinaryExpr)
		if !ok || len(table) == 0 {
			t.Fatalf("%s: this test doesn't understand its steps", fn.Name)
		}
		verb, _ := text(sum.X)
		for _, name := range table {
			steps = append(steps, verb+name)
		}
		return true
	})
	return steps
}

// text returns the value of a string literal.
func text(e ast.Expr) (s string, ok bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}

// vanish removes the pod's namespace, as a runtime does that crashed before its DEL.
func vanish(t *testing.T, ns *nstest.NS) {
	t.Helper()
	if out, err := exec.Command("ip", "netns", "delete", ns.Name()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
