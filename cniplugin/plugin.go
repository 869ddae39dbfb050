// Package cniplugin is the CNI plugin: it reads what the runtime gives it, asks the agent over its socket
// (package podapi) and prints the answer. It decides nothing about the network and holds no state, except
// that a DEL finds the agent down: then it leaves a tombstone and succeeds, since a runtime repeats a
// failing DEL for ever. Read the CNI specification 1.1, sections 2 and 5, first.
package cniplugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tapyard/cniplugin/podapi"
)

// DefaultSocket is where the agent listens unless the configuration's key "socket" says otherwise.
const DefaultSocket = "/run/tapyard/cni.sock"

const (
	// callTimeout ends a call that the agent does not answer; kubelet gives up after two minutes.
	callTimeout = time.Minute
	// statusTimeout is STATUS's: runtimes ask every 5 s, and an agent that takes longer is not available.
	statusTimeout = 4 * time.Second
)

// versions of the specification that the plugin and the agent's results support, ascending.
var versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// conf holds the keys of the network configuration that the plugin itself reads; the agent gets them all.
type conf struct {
	CNIVersion string `json:"cniVersion"`
	Socket     string `json:"socket"`
}

// verb is one of the operations of the specification.
type verb struct {
	since   string   // the first version that has it
	needs   []string // environment variables
	timeout time.Duration
	run     func(*invocation, context.Context) ([]byte, error)
}

var verbs = map[string]verb{
	"ADD":     {"0.3.1", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, callTimeout, (*invocation).callInside},
	"DEL":     {"0.3.1", []string{"CNI_CONTAINERID", "CNI_IFNAME"}, callTimeout, (*invocation).del},
	"CHECK":   {"0.4.0", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, callTimeout, (*invocation).callInside},
	"GC":      {"1.1.0", nil, callTimeout, (*invocation).callNetwork},
	"STATUS":  {"1.1.0", nil, statusTimeout, (*invocation).status},
	"VERSION": {"", nil, callTimeout, (*invocation).version},
}

// invocation is one run of the plugin.
type invocation struct {
	getenv  func(string) string
	command string // CNI_COMMAND
	verb    verb
	raw     []byte
	conf    conf
}

// Run executes the verb that the environment names: standard input and output as the specification says.
// It returns the exit code.
func Run(ctx context.Context, getenv func(string) string, stdin io.Reader, stdout io.Writer) int {
	in := &invocation{getenv: getenv, command: getenv("CNI_COMMAND")}
	out, err := in.run(ctx, stdin)
	if err != nil {
		out = in.failure(err)
	}
	if len(out) > 0 {
		stdout.Write(append(out, '\n')) // a runtime that closed its end is told by the exit code
	}
	if err != nil {
		return 1
	}
	return 0
}

func (in *invocation) run(ctx context.Context, stdin io.Reader) ([]byte, error) {
	v, ok := verbs[in.command]
	switch {
	case in.command == "":
		return nil, podapi.Errorf(podapi.CodeEnvironment, "CNI_COMMAND is not set: this is a CNI plugin, which a container runtime starts")
	case !ok:
		return nil, podapi.Errorf(podapi.CodeEnvironment, "unsupported CNI_COMMAND %q: this plugin has %s", in.command,
			strings.Join(slices.Sorted(maps.Keys(verbs)), ", "))
	}
	in.verb = v
	if err := in.read(stdin); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	return v.run(in, ctx)
}

// read takes the network configuration.
func (in *invocation) read(stdin io.Reader) (err error) {
	in.raw, err = io.ReadAll(io.LimitReader(stdin, podapi.MaxMessage+1))
	if err != nil {
		return podapi.Errorf(podapi.CodeIO, "read the network configuration from standard input: %v", err)
	}
	if len(in.raw) > podapi.MaxMessage {
		return podapi.Errorf(podapi.CodeInvalidConf, "the network configuration has more than %d bytes", podapi.MaxMessage)
	}
	if err := json.Unmarshal(in.raw, &in.conf); err != nil {
		return podapi.Errorf(podapi.CodeDecode, "decode the network configuration: %v", err)
	}
	if in.conf.Socket == "" {
		in.conf.Socket = DefaultSocket
	}
	if !filepath.IsAbs(in.conf.Socket) {
		return podapi.Errorf(podapi.CodeInvalidConf, "key \"socket\" is %q: want an absolute path such as %s", in.conf.Socket, DefaultSocket)
	}
	return nil
}

// callInside is for the verbs that need the pod's namespace.
func (in *invocation) callInside(ctx context.Context) ([]byte, error) {
	req, err := in.request()
	if err != nil {
		return nil, err
	}
	ns, err := os.Open(req.Netns)
	if err != nil {
		return nil, podapi.Errorf(podapi.CodeEnvironment, "open the pod's network namespace, CNI_NETNS: %v", err)
	}
	defer ns.Close()
	return in.call(ctx, req, int(ns.Fd()))
}

// del is done once the agent knows of it, or will know at its next start.
func (in *invocation) del(ctx context.Context) ([]byte, error) {
	req, err := in.request()
	if err != nil {
		return nil, err
	}
	netns := -1
	if ns, err := os.Open(req.Netns); err == nil { // it may be gone, and some runtimes no longer name it
		defer ns.Close()
		netns = int(ns.Fd())
	}
	out, err := in.call(ctx, req, netns)
	if !errors.Is(err, podapi.ErrAgentDown) {
		return out, err
	}
	if terr := podapi.WriteTombstone(podapi.TombstoneDir(in.conf.Socket), req); terr != nil {
		return nil, &podapi.Error{Code: podapi.CodeTryAgain, Msg: terr.Error(), Details: err.Error()}
	}
	if out, err = in.call(ctx, req, netns); errors.Is(err, podapi.ErrAgentDown) {
		return nil, nil
	}
	return out, err
}

// callNetwork is for the verbs that are about no pod.
func (in *invocation) callNetwork(ctx context.Context) ([]byte, error) {
	req, err := in.request()
	if err != nil {
		return nil, err
	}
	return in.call(ctx, req, -1)
}

// status gives the code of the specification to an agent that is down, or silent.
func (in *invocation) status(ctx context.Context) ([]byte, error) {
	out, err := in.callNetwork(ctx)
	if errors.Is(err, podapi.ErrAgentDown) || errors.Is(err, context.DeadlineExceeded) {
		e := podapi.AsError(err)
		e.Code = podapi.CodeNotAvailable
		return nil, e
	}
	return out, err
}

func (in *invocation) version(context.Context) ([]byte, error) {
	v := in.conf.CNIVersion
	if v == "" {
		v = versions[len(versions)-1]
	}
	return json.Marshal(map[string]any{"cniVersion": v, "supportedVersions": versions})
}

// request checks the configuration's version and the environment against what the verb needs.
func (in *invocation) request() (podapi.Request, error) {
	switch at := slices.Index(versions, in.conf.CNIVersion); {
	case at < 0:
		return podapi.Request{}, &podapi.Error{
			Code: podapi.CodeVersion, Msg: "incompatible CNI versions",
			Details: fmt.Sprintf("the network configuration has cniVersion %q, the plugin supports %s", in.conf.CNIVersion, strings.Join(versions, ", ")),
		}
	case at < slices.Index(versions, in.verb.since):
		return podapi.Request{}, podapi.Errorf(podapi.CodeVersion, "cniVersion %s has no %s, which came with %s", in.conf.CNIVersion, in.command, in.verb.since)
	}
	var missing []string
	for _, name := range in.verb.needs {
		if in.getenv(name) == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return podapi.Request{}, podapi.Errorf(podapi.CodeEnvironment, "required environment variables are not set: %s", strings.Join(missing, ", "))
	}
	req := podapi.Request{
		Command: in.command, ContainerID: in.getenv("CNI_CONTAINERID"), IfName: in.getenv("CNI_IFNAME"),
		Netns: in.getenv("CNI_NETNS"), Args: in.getenv("CNI_ARGS"), Path: in.getenv("CNI_PATH"), Stdin: in.raw,
	}
	if in.verb.needs == nil {
		return req, nil
	}
	return req, podapi.CheckNames(req.ContainerID, req.IfName)
}

func (in *invocation) call(ctx context.Context, req podapi.Request, netns int) ([]byte, error) {
	resp, err := podapi.Call(ctx, in.conf.Socket, req, netns)
	switch {
	case err == nil && resp.Error != nil:
		return nil, resp.Error
	case err == nil:
		return resp.Result, nil
	case errors.Is(err, podapi.ErrAgentDown), errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%w: %w", in.noAnswer(), err)
	}
	return nil, err
}

// noAnswer is the failure of an agent that is down, or up and silent, with the way out.
func (in *invocation) noAnswer() *podapi.Error {
	const format = "start it ('systemctl status tapyard', or its DaemonSet's pod on this node), or set the key \"socket\" of the network configuration if the agent's runDir is not %s"
	return &podapi.Error{
		Code: podapi.CodeTryAgain, Msg: "no answer from the agent",
		Details: fmt.Sprintf(format, filepath.Dir(in.conf.Socket)),
	}
}

// failure is what standard output gets when a verb failed.
func (in *invocation) failure(err error) []byte {
	v := in.conf.CNIVersion
	if v == "" {
		v = versions[len(versions)-1]
	}
	out, merr := json.Marshal(struct {
		CNIVersion string `json:"cniVersion"`
		*podapi.Error
	}{v, podapi.AsError(err)})
	if merr != nil {
		return nil // strings and a number can't fail
	}
	return out
}
