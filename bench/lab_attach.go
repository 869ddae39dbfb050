package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// labNamespace is the Kubernetes namespace that the lab's attachments seem to be in.
const labNamespace = "lab"

// labHostOn is something attached to the LAN: a node, or the way out.
type labHostOn struct {
	name, netns string
	addrs       []netip.Addr
	gateway     bool // is the gateway rather than having one
}

// hosts are what is attached to the LAN.
func (l *Lab) hosts() []labHostOn {
	hosts := []labHostOn{{labInternet, labPrefix + labInternet, labHost(1, false), true}}
	for _, n := range l.Nodes {
		hosts = append(hosts, labHostOn{n.Name, n.Netns, n.Underlay, false})
	}
	return hosts
}

// cni returns what runs the plugin beside our program for the agent, as a container runtime would, its cache
// in the lab's folder.
func (l *Lab) cni(agent string) (*libcni.CNIConfig, *libcni.NetworkConfigList, error) {
	conflist, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "tapyard-lab-" + agent,
		"plugins":    []any{map[string]string{"type": "tapyard-cni", "socket": labSocket(agent, "cni.sock")}},
	})
	if err != nil {
		return nil, nil, err
	}
	conf, err := libcni.NetworkConfFromBytes(conflist)
	if err != nil {
		return nil, nil, fmt.Errorf("read the conflist: %w", err)
	}
	cache := filepath.Join(labDir, "cni")
	return libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(l.Exe)}, cache, nil), conf, nil
}

func labRuntimeConf(name, netnsName string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: name, NetNS: netnsPath(netnsName), IfName: podDevice,
		Args: [][2]string{{"K8S_POD_NAMESPACE", labNamespace}, {"K8S_POD_NAME", name}},
	}
}

// attach attaches a namespace to an agent.
func (l *Lab) attach(ctx context.Context, agent, name, netnsName string) (*types100.Result, error) {
	cni, conf, err := l.cni(agent)
	if err != nil {
		return nil, err
	}
	answer, err := cni.AddNetworkList(ctx, conf, labRuntimeConf(name, netnsName))
	if err != nil {
		return nil, fmt.Errorf("attach %s to %s by tapyard-cni: %w", name, agent, err)
	}
	result, err := types100.NewResultFromResult(answer)
	if err != nil {
		return nil, fmt.Errorf("read the plugin's result for %s: %w", name, err)
	}
	return result, nil
}

// detach succeeds for what isn't attached, or only half. When the agent is dead it does nothing: the device
// goes with its namespace, the agent's record with the lab's folder.
func (l *Lab) detach(ctx context.Context, agent, name, netnsName string) error {
	pids, err := l.pidsOf(agent)
	if len(pids) == 0 || err != nil {
		return err
	}
	cni, conf, err := l.cni(agent)
	if err == nil {
		err = cni.DelNetworkList(ctx, conf, labRuntimeConf(name, netnsName))
	}
	if err != nil {
		return fmt.Errorf("detach %s from %s by tapyard-cni: %w", name, agent, err)
	}
	return nil
}

// attachPod attaches a pod to its node and notes what it was given.
func (l *Lab) attachPod(ctx context.Context, p *LabPod) error {
	result, err := l.attach(ctx, p.Node, p.Name, p.Netns)
	if err != nil {
		return err
	}
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return fmt.Errorf("attach %s: the plugin answered with the address %v", p.Name, ip.Address)
		}
		p.Addresses = append(p.Addresses, addr.Unmap())
	}
	for _, i := range result.Interfaces {
		if i.Name == podDevice && i.Sandbox != "" {
			p.MAC = i.Mac
		}
	}
	return nil
}

// connect attaches a host to the LAN, which is a plain switch: addresses are ours to give.
func (l *Lab) connect(ctx context.Context, h labHostOn) error {
	if _, err := l.attach(ctx, labLAN, h.name, h.netns); err != nil {
		return err
	}
	if err := inNetns(h.netns, h.configure); err != nil {
		return fmt.Errorf("configure %s of %s: %w", podDevice, h.name, err)
	}
	return nil
}

// configure gives the host's device its addresses and default routes.
func (h labHostOn) configure() error {
	link, err := netlink.LinkByName(podDevice)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	for _, a := range h.addrs {
		// nodad: a tentative address can't be bound for a second, and nobody else is here.
		addr := &netlink.Addr{IPNet: labNet(a), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	if h.gateway {
		return nil
	}
	for _, gw := range labHost(1, false) {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("add default route via %s: %w", gw, err)
		}
	}
	return nil
}

// labNet is an address of the LAN with the LAN's prefix length.
func labNet(a netip.Addr) *net.IPNet {
	bits := labLANBits4
	if a.Is6() {
		bits = labLANBits6
	}
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}
