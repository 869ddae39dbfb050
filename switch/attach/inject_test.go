package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	"tapyard/cniplugin"
	"tapyard/cniplugin/podapi"
)

var errInjected = errors.New("injected")

// stepsOf are the steps of an ADD and a DEL, in their order.
func stepsOf(t *testing.T, portType string) (add, del []string) {
	t.Helper()
	var all []string
	n, ns := newNode(t, func(c *Config) {
		c.PortType, c.step = portType, func(name string) error { all = append(all, name); return nil }
	}), nstest.New(t)
	n.add(t, ns, "c1")
	add, all = all, nil
	n.del(t, reqFor(ns, "c1"))
	if len(add) < 9 || len(all) < 5 || add[len(add)-1] != "ADD: answer" {
		t.Fatalf("steps of ADD %q and DEL %q", add, all)
	}
	return add, all
}

// failAt has the step fail; "" is none.
func (n *node) failAt(step string) {
	n.cfg.step = func(name string) error {
		if name == step {
			return errInjected
		}
		return nil
	}
	n.start.step = nil
}

// A failure in any step of an ADD leaves nothing, and one in any step of a DEL nothing that the next DEL, or the
// next start and a DEL, does not remove.
func TestFailureAtEachStep(t *testing.T) { bothTypes(t, testFailureAtEachStep) }

func testFailureAtEachStep(t *testing.T, portType string) {
	add, del := stepsOf(t, portType)
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	descriptors := openDescriptors(t)
	for _, step := range add[:len(add)-1] {
		n.failAt(step)
		if _, err := n.Add(t.Context(), reqFor(ns, "c1")); !errors.Is(err, errInjected) {
			t.Errorf("%s: %v", step, err)
		}
		n.assertNothing(t, ns)
	}
	for _, step := range del[:len(del)-1] {
		for name, next := range map[string]func(){
			"DEL": func() {},
			"GC": func() {
				if err := n.GC(t.Context(), "", nil); err != nil {
					t.Error(err)
				}
				n.assertNothing(t, ns)
			},
			"restart": func() { n.restart(t) },
			"sweep": func() {
				n.restart(t)
				if err := n.Reconcile(t.Context()); err != nil {
					t.Error(err)
				}
			},
		} {
			n.failAt("")
			n.add(t, ns, "c1")
			n.failAt(step)
			if err := n.Del(t.Context(), Request{ContainerID: "c1", IfName: "eth0", NetnsFD: -1}); !errors.Is(err, errInjected) {
				t.Errorf("%s: %v", step, err)
			}
			n.failAt("")
			next()
			n.del(t, reqFor(ns, "c1"))
			n.assertNothing(t, ns)
			if t.Failed() {
				t.Fatalf("at the step %q, followed by %s", step, name)
			}
		}
	}
	n.removals.Wait()
	if now := openDescriptors(t); now > descriptors {
		t.Errorf("%d descriptors were open, now %d are", descriptors, now)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// stepEnv names the step at which an agent of startAgent kills itself with SIGKILL.
const stepEnv = "TAPYARD_ATTACH_STEP"

func killedAt(step string) func(string) error {
	return func(name string) error {
		if name == step {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return nil
	}
}

// An agent killed at any step of an ADD or DEL: the next one has the pod or nothing of it, and the runtime's DEL
// leaves nothing.
func TestAgentKilledAtEachStep(t *testing.T) { bothTypes(t, testAgentKilledAtEachStep) }

func testAgentKilledAtEachStep(t *testing.T, portType string) {
	add, del := stepsOf(t, portType)
	steps := append(add, del...)
	if testing.Short() {
		rng := seed.Rand(t)
		rng.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		steps = steps[:3]
	}
	dir := t.TempDir()
	for _, step := range steps {
		ns := nstest.New(t)
		t.Setenv(stepEnv, step)
		agent := startAgent(t, dir, portType)
		resp, err := call(dir, "ADD", "c1", ns)
		if strings.HasPrefix(step, "DEL") {
			if err != nil || resp.Error != nil {
				t.Fatalf("ADD before %s: %v, %v", step, err, resp.Error)
			}
			_, err = call(dir, "DEL", "c1", nil)
		}
		if !errors.Is(err, podapi.ErrAgentDown) {
			t.Fatalf("%s: the agent answers %v", step, err)
		}
		agent.Wait()
		t.Setenv(stepEnv, "")
		agent = startAgent(t, dir, portType)
		rows := auditedBy(t, dir)
		links := linksOf(t, ns)
		if attached := len(rows) > 0; attached != slices.Contains(links["eth0"].Flags, "LOWER_UP") || !attached && len(links) != 1 {
			t.Errorf("%s: recorded %+v, devices %v", step, rows, links)
		}
		if resp, err := call(dir, "DEL", "c1", nil); err != nil || resp.Error != nil {
			t.Errorf("%s: DEL: %v, %v", step, err, resp.Error)
		}
		if links := linksOf(t, ns); len(links) != 1 {
			t.Errorf("%s: after its DEL: %v", step, links)
		}
		assertOwnDevices(t, "lo")
		if rows := auditedBy(t, dir); len(rows) > 0 {
			t.Errorf("%s: after its DEL: %+v", step, rows)
		}
		agent.Process.Kill()
		agent.Wait()
		assertNoRecords(t, dir)
		if t.Failed() {
			return
		}
	}
}

// auditedBy asks an agent of startAgent what it has, in which nothing may be wrong.
func auditedBy(t *testing.T, dir string) (rows []Audited) {
	t.Helper()
	resp, err := call(dir, "AUDIT", "c1", nil)
	if err == nil && resp.Error != nil {
		err = resp.Error
	}
	if err == nil {
		err = json.Unmarshal(resp.Result, &rows)
	}
	if err != nil {
		t.Fatal(err)
	}
	if wrong, repaired := wrongAndRepaired(rows); wrong+repaired != "" {
		t.Errorf("wrong %q, repaired %q", wrong, repaired)
	}
	return rows
}

// auditing is a Manager that answers AUDIT as well.
type auditing struct{ *Manager }

func (a auditing) Handle(ctx context.Context, req *podapi.Request, netns int) (json.RawMessage, error) {
	if req.Command != "AUDIT" {
		return a.Manager.Handle(ctx, req, netns)
	}
	rows, err := a.Audit(ctx, false)
	if err != nil {
		return nil, err
	}
	return json.Marshal(rows)
}

// The plugin as a process of its own, to be killed.

const pluginEnv = "TAPYARD_ATTACH_PLUGIN"

func pluginMain() { os.Exit(cniplugin.Run(context.Background(), os.Getenv, os.Stdin, os.Stdout)) }

func plugin(verb, socket string, ns *nstest.NS) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), pluginEnv+"=1", "CNI_COMMAND="+verb, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS="+ns.Path(), "CNI_PATH=/opt/cni/bin")
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0","name":"pods","type":"tapyard","socket":"` + socket + `"}`)
	return cmd
}

// counted tells when no request is under way.
type counted struct {
	podapi.Handler
	sync.WaitGroup
}

func (c *counted) Handle(ctx context.Context, req *podapi.Request, netns int) (json.RawMessage, error) {
	defer c.Done()
	return c.Handler.Handle(ctx, req, netns)
}

// A plugin killed while the agent is at any step: its runtime, which knows of no end, sends DEL.
func TestPluginKilledAtEachStep(t *testing.T) { bothTypes(t, testPluginKilledAtEachStep) }

func testPluginKilledAtEachStep(t *testing.T, portType string) {
	add, del := stepsOf(t, portType)
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	handler := &counted{Handler: n.Manager}
	socket := filepath.Join(t.TempDir(), "cni.sock")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- listenAndServe(ctx, socket, &podapi.Server{Handler: handler, Log: n.cfg.Log}) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	for !exists(socket) {
		time.Sleep(time.Millisecond)
	}
	for _, step := range append(add, del...) {
		if strings.HasPrefix(step, "DEL") {
			n.add(t, ns, "c1")
		}
		reached, goOn := make(chan struct{}), make(chan struct{})
		n.cfg.step = func(name string) error {
			if name == step {
				close(reached)
				<-goOn
			}
			return nil
		}
		handler.Add(1)
		victim := plugin(step[:3], socket, ns)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		<-reached
		victim.Process.Kill()
		victim.Wait()
		close(goOn)
		handler.Wait()
		n.cfg.step = nil
		handler.Add(1)
		if out, err := plugin("DEL", socket, ns).CombinedOutput(); err != nil {
			t.Errorf("%s: DEL: %v: %s", step, err, out)
		}
		n.assertNothing(t, ns)
		if t.Failed() {
			t.Fatalf("at the step %q", step)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// A disk without room fails an ADD, which leaves nothing and says why; what was acknowledged is there, and DEL
// goes on working, after a restart too.
func TestFullDisk(t *testing.T) { bothTypes(t, testFullDisk) }

func testFullDisk(t *testing.T, portType string) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tapyard-full", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	n := newNode(t, func(c *Config) { c.PortType, c.StateDir = portType, dir })
	n.add(t, nstest.New(t), "c0")
	fillDisk(t, dir)
	var pods []*nstest.NS
	failed := nstest.New(t)
	for len(pods) < 200 { // the room that the file has lasts for some
		ns := nstest.New(t)
		_, err := n.Add(t.Context(), reqFor(ns, fmt.Sprint("c", len(pods)+1)))
		if err == nil {
			pods = append(pods, ns)
			continue
		}
		if code := podapi.AsError(err).Code; code != podapi.CodeTryAgain || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, database)) {
			t.Errorf("code %d, %v; want %d, with the file and why", code, err, podapi.CodeTryAgain)
		}
		if links := linksOf(t, ns); len(links) != 1 {
			t.Errorf("a failed ADD left %v", links)
		}
		failed = ns
		break
	}
	acknowledged := len(pods) + 1
	t.Logf("%d ADDs on a full disk", len(pods))
	if len(pods) == 200 {
		t.Fatal("the disk isn't full")
	}
	for range 3 {
		if _, err := n.Add(t.Context(), reqFor(failed, "again")); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v", err)
		}
	}
	n.restart(t)
	if got := len(n.records(t)); got != acknowledged || len(n.List()) != acknowledged {
		t.Errorf("%d records and %d pods after a restart, want %d", got, len(n.List()), acknowledged)
	}
	for i := range acknowledged {
		n.del(t, Request{ContainerID: fmt.Sprint("c", i), IfName: "eth0", NetnsFD: -1})
	}
	n.assertNothing(t, append(pods, failed)...)
	n.add(t, failed, "c0") // what the DELs gave back is enough
	n.del(t, reqFor(failed, "c0"))
}

// fillDisk leaves not a byte.
func fillDisk(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := 1 << 16; chunk > 0; {
		if _, err := f.Write(bytes.Repeat([]byte{0xff}, chunk)); err != nil {
			chunk /= 2
		}
	}
}

// 250 pods are attached 32 at a time while 50 others are removed.
func TestManyAtOnce(t *testing.T) { bothTypes(t, testManyAtOnce) }

func testManyAtOnce(t *testing.T, portType string) {
	more, fewer := 250, 50
	if testing.Short() {
		more, fewer = 60, 12
	}
	n := newNode(t, func(c *Config) {
		c.PortType = portType
		c.Subnets = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22"), dualStack[1]}
	})
	pods := make([]*nstest.NS, more+fewer)
	for i := range pods {
		pods[i] = nstest.New(t)
	}
	for i := range fewer {
		n.add(t, pods[i], fmt.Sprint("c", i))
	}
	var running sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range fewer {
		running.Go(func() { n.del(t, reqFor(pods[i], fmt.Sprint("c", i))) })
	}
	for i := fewer; i < len(pods); i++ {
		slots <- struct{}{}
		running.Go(func() {
			if _, err := n.Add(t.Context(), reqFor(pods[i], fmt.Sprint("c", i))); err != nil {
				t.Error(err)
			}
			<-slots
		})
	}
	running.Wait()
	rows, err := n.Audit(t.Context(), false)
	if wrong, _ := wrongAndRepaired(rows); err != nil || wrong != "" || len(rows) != 2*more {
		t.Errorf("%d addresses, want %d; wrong %q, %v", len(rows), 2*more, wrong, err)
	}
	holder := map[netip.Prefix]string{}
	for i := fewer; i < len(pods); i++ { // as the pods see it
		for _, a := range linksOf(t, pods[i])["eth0"].Addrs {
			p := netip.PrefixFrom(netip.MustParseAddr(a.Local), a.Length)
			if holder[p] != "" && !p.Addr().IsLinkLocalUnicast() {
				t.Errorf("%s and %s have %v", holder[p], pods[i].Name(), p)
			}
			holder[p] = pods[i].Name()
		}
	}
	for i := fewer; i < len(pods); i++ {
		running.Go(func() { n.del(t, reqFor(pods[i], fmt.Sprint("c", i))) })
	}
	running.Wait()
	n.assertNothing(t, pods...)
}
