package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/cniplugin"
	"tapyard/cniplugin/podapi"
	"tapyard/switch/port"
)

// The agent as a process of its own, to be killed.

const agentEnv, agentTypeEnv = "TAPYARD_ATTACH_AGENT", "TAPYARD_ATTACH_TYPE"

func agentMain(dir string) {
	quiet := slog.New(slog.DiscardHandler)
	var m *Manager
	cfg := Config{
		StateDir: dir, Subnets: dualStack, VNI: 1, MTU: func() int { return 1430 }, Log: quiet,
		Queues: 1, Steering: port.NewSteering(2),
		Publish:  func(Attachment, port.Port) error { return nil },
		Withdraw: func(context.Context, Attachment) error { return nil },
		step:     killedAt(os.Getenv(stepEnv)),
	}
	k := kindNamed(os.Getenv(agentTypeEnv))
	k.configure(&cfg, func() *Manager { return m })
	var served realSwitch
	var err error
	if k.whole {
		if served, err = newSwitch(cfg); err == nil {
			cfg.Publish, cfg.Withdraw = served.AddPod, served.RemovePod
		}
	}
	if err == nil {
		m, err = Open(cfg)
	}
	if err == nil {
		m.Reopen()
		err = errors.Join(m.Restore(context.Background()), m.Reconcile(context.Background()))
	}
	if err == nil && k.whole {
		err = cfg.MapPorts()
	}
	if err == nil {
		err = listenAndServe(context.Background(), filepath.Join(dir, "cni.sock"), &podapi.Server{Handler: auditing{m, served}, Log: quiet})
	}
	slog.Error("agent ended", "err", err)
	os.Exit(1)
}

func listenAndServe(ctx context.Context, socket string, s *podapi.Server) error {
	os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// startAgent returns when the agent answers.
func startAgent(t *testing.T, dir, portType string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+dir, agentTypeEnv+"="+portType)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		_, err := call(dir, "AUDIT", "probe", nil)
		if err == nil {
			return cmd
		}
		if !errors.Is(err, podapi.ErrAgentDown) || time.Now().After(deadline) {
			t.Fatalf("the agent does not come up: %v", err)
		}
	}
}

func call(dir, command, id string, ns *nstest.NS) (podapi.Response, error) {
	return callWith(dir, command, id, ns, json.RawMessage(`{"cniVersion":"1.0.0"}`))
}

func callWith(dir, command, id string, ns *nstest.NS, conf json.RawMessage) (podapi.Response, error) {
	req := podapi.Request{Command: command, ContainerID: id, IfName: "eth0", Path: os.Getenv(pluginsEnv), Stdin: conf}
	fd := -1
	if ns != nil {
		req.Netns, fd = ns.Path(), ns.FD()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return podapi.Call(ctx, filepath.Join(dir, "cni.sock"), req, fd)
}

// mustAnswer asks an agent of startAgent for something that has to work.
func mustAnswer(t *testing.T, dir, command string, ns *nstest.NS, conf json.RawMessage) json.RawMessage {
	t.Helper()
	resp, err := callWith(dir, command, "c1", ns, conf)
	if err == nil && resp.Error != nil {
		err = fmt.Errorf("code %d: %w", resp.Error.Code, resp.Error)
	}
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return resp.Result
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

// auditing is a Manager that answers AUDIT as well, and TRACES of its switch.
type auditing struct {
	*Manager
	served realSwitch // or nil
}

func (a auditing) Handle(ctx context.Context, req *podapi.Request, netns int) (json.RawMessage, error) {
	switch req.Command {
	case "AUDIT":
		rows, err := a.Audit(ctx, false)
		if err != nil {
			return nil, err
		}
		return json.Marshal(rows)
	case "TRACES":
		if a.served == nil {
			return json.Marshal("")
		}
		return json.Marshal(a.served.Traces())
	}
	return a.Manager.Handle(ctx, req, netns)
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

// The plugin as a process of its own, to be killed.

const pluginEnv = "TAPYARD_ATTACH_PLUGIN"

func pluginMain() { os.Exit(cniplugin.Run(context.Background(), os.Getenv, os.Stdin, os.Stdout)) }

func pluginWith(verb string, ns *nstest.NS, conf json.RawMessage) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), pluginEnv+"=1", "CNI_COMMAND="+verb, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS="+ns.Path())
	cmd.Stdin = bytes.NewReader(conf)
	return cmd
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
