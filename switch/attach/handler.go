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
	conf, err := parseConf(req.Stdin, req.Args, req.Path)
	r.Conf = conf
	switch req.Command {
	case "ADD":
		if err != nil {
			return nil, err
		}
		return m.handleAdd(ctx, r)
	case "DEL":
		return nil, m.Del(ctx, r) // also of a configuration that ADD has refused
	case "CHECK":
		return nil, m.handleCheck(ctx, r, req.Stdin)
	case "GC":
		return nil, m.handleGC(ctx, req.Stdin, conf)
	case "STATUS":
		if err != nil {
			return nil, err
		}
		return nil, m.handleStatus(ctx, conf)
	}
	return nil, podapi.Errorf(podapi.CodeEnvironment, "unsupported CNI_COMMAND %q: this agent has ADD, CHECK, DEL, GC and STATUS", req.Command)
}

func (m *Manager) handleAdd(ctx context.Context, r Request) (json.RawMessage, error) {
	// Before anything is done, since a result that can't be told would undo it all.
	if _, err := result(Attachment{}, r.Conf); err != nil {
		return nil, err
	}
	a, err := m.Add(ctx, r)
	if err != nil {
		return nil, err
	}
	return result(a, r.Conf)
}

// result returns what ADD prints, in the form of the configuration's version of the CNI specification. What
// plugins before us in the chain have made stands first.
func result(a Attachment, conf Conf) (json.RawMessage, error) {
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if len(conf.PrevResult) > 0 {
		var err error
		if r, err = decodeResult(conf.CNIVersion, conf.PrevResult); err != nil {
			return nil, podapi.Errorf(podapi.CodeInvalidConf, "key \"prevResult\": %v", err)
		}
	}
	devs := []*types100.Interface{{Name: a.IfName, Mac: a.MAC.String(), Sandbox: a.NetnsPath}}
	if a.PortType == Veth {
		devs = slices.Insert(devs, 0, &types100.Interface{Name: a.HostIfName(), Mac: a.hostMAC().String()})
	}
	pod := len(r.Interfaces) + len(devs) - 1
	if conf.CNIVersion == types100.ImplementedSpecVersion {
		for _, d := range devs {
			d.Mtu = a.MTU // 1.1.0 has introduced the key
		}
	}
	r.Interfaces = append(r.Interfaces, devs...)
	gateways := a.Gateways
	if a.IPAM != nil {
		gateways, r.DNS = a.IPAM.Gateways, a.IPAM.DNS
	}
	for i, addr := range a.Addresses {
		ip := &types100.IPConfig{Interface: types100.Int(pod), Address: *ipNet(addr)}
		if i < len(gateways) {
			ip.Gateway = gateways[i].AsSlice()
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, route := range a.AllRoutes() {
		r.Routes = append(r.Routes, &types.Route{Dst: *ipNet(route.Dst), GW: route.GW.AsSlice()})
	}
	versioned, err := r.GetAsVersion(conf.CNIVersion)
	if err != nil {
		return nil, podapi.Errorf(podapi.CodeVersion, "cniVersion %q: %v", conf.CNIVersion, err)
	}
	out, err := json.Marshal(versioned)
	if err != nil {
		return nil, fmt.Errorf("encode the result: %w", err)
	}
	return out, nil
}
