package attach

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"tapyard/cniplugin/podapi"
)

// Handle is the podapi.Handler of a Manager: it serves the verbs but VERSION, which the plugin knows by itself.
func (m *Manager) Handle(ctx context.Context, req *podapi.Request, netns int) (json.RawMessage, error) {
	r := Request{ContainerID: req.ContainerID, IfName: req.IfName, NetnsPath: req.Netns, NetnsFD: netns, Args: req.Args}
	switch req.Command {
	case "ADD":
		return m.handleAdd(ctx, r, req.Stdin)
	case "DEL":
		return nil, m.Del(ctx, r)
	case "CHECK":
		return nil, m.handleCheck(ctx, r, req.Stdin)
	case "GC":
		return nil, m.handleGC(ctx, req.Stdin)
	case "STATUS":
		return nil, m.handleStatus(req.Stdin)
	}
	return nil, podapi.Errorf(podapi.CodeEnvironment, "unsupported CNI_COMMAND %q: this agent has ADD, CHECK, DEL, GC and STATUS", req.Command)
}

func (m *Manager) handleAdd(ctx context.Context, r Request, stdin []byte) (json.RawMessage, error) {
	var conf struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Network    string `json:"network"`
		Queues     int    `json:"queues"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return nil, podapi.Errorf(podapi.CodeDecode, "decode the network configuration: %v", err)
	}
	// Before anything is done, since a result that can't be told would undo it all.
	if _, err := result(Attachment{}, conf.CNIVersion); err != nil {
		return nil, err
	}
	r.Conflist, r.Network, r.Queues = conf.Name, conf.Network, conf.Queues
	a, err := m.Add(ctx, r)
	if err != nil {
		return nil, err
	}
	return result(a, conf.CNIVersion)
}

// result returns what ADD prints, in the form of that version of the CNI specification.
func result(a Attachment, cniVersion string) (json.RawMessage, error) {
	devs := []*types100.Interface{{Name: a.IfName, Mac: a.MAC.String(), Sandbox: a.NetnsPath}}
	if a.PortType == Veth {
		devs = slices.Insert(devs, 0, &types100.Interface{Name: a.HostIfName(), Mac: a.hostMAC().String()})
	}
	pod := len(devs) - 1
	if cniVersion == types100.ImplementedSpecVersion {
		for _, d := range devs {
			d.Mtu = a.MTU // 1.1.0 has introduced the key
		}
	}
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Interfaces: devs}
	for i, addr := range a.Addresses {
		ip := &types100.IPConfig{Interface: types100.Int(pod), Address: *ipNet(addr)}
		r.IPs = append(r.IPs, ip)
		if i < len(a.Gateways) {
			ip.Gateway = a.Gateways[i].AsSlice()
			r.Routes = append(r.Routes, &types.Route{Dst: *ipNet(defaultOf(a.Gateways[i])), GW: ip.Gateway})
		}
	}
	versioned, err := r.GetAsVersion(cniVersion)
	if err != nil {
		return nil, podapi.Errorf(podapi.CodeVersion, "cniVersion %q: %v", cniVersion, err)
	}
	out, err := json.Marshal(versioned)
	if err != nil {
		return nil, fmt.Errorf("encode the result: %w", err)
	}
	return out, nil
}
