package attach

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"tapyard/cniplugin/podapi"
)

// Read the CNI specification 1.1, section 4 "Plugin Delegation", first.

// Delegation is an IPAM plugin that gives out an attachment's addresses, with what it needs to be asked again
// when the agent or the runtime has forgotten: after a restart, or for a pod that vanished.
type Delegation struct {
	Type string          `json:"type"`           // the plugin's name
	Path string          `json:"path"`           // CNI_PATH, where it is looked for
	Args string          `json:"args,omitempty"` // CNI_ARGS
	Conf json.RawMessage `json:"conf"`           // the network configuration

	// What it answered.
	Gateways []netip.Addr `json:"gateways,omitempty"` // one per address, perhaps invalid
	DNS      types.DNS    `json:"dns,omitzero"`
}

// dhcp is the one plugin that works over the network itself: through the pod's device, while that is connected.
const dhcp = "dhcp"

// newDelegation refuses a name that would leave the folders of CNI_PATH.
func newDelegation(plugin, path string, stdin []byte, args string) (*Delegation, error) {
	if strings.ContainsRune(plugin, filepath.Separator) || plugin == "." || plugin == ".." {
		return nil, wrong("ipam.type", plugin, "want the bare name of a plugin in CNI_PATH, such as host-local")
	}
	return &Delegation{Type: plugin, Path: path, Args: args, Conf: stdin}, nil
}

// delegateTimeout ends a plugin that hangs, before our own plugin gives up on us (a minute).
const delegateTimeout = 45 * time.Second

// run executes the IPAM plugin with a verb. It returns what the plugin printed.
func (d *Delegation) run(ctx context.Context, verb string, req Request) ([]byte, error) {
	path, err := invoke.FindInPath(d.Type, filepath.SplitList(d.Path))
	if err != nil {
		return nil, podapi.Errorf(podapi.CodeInvalidConf, "key \"ipam.type\" is %q: no such plugin in CNI_PATH %q; install it there (package containernetworking-plugins), or leave 'ipam' out: then this agent gives out the addresses", d.Type, d.Path)
	}
	ctx, cancel := context.WithTimeout(ctx, delegateTimeout)
	defer cancel()
	args := &invoke.Args{Command: verb, ContainerID: req.ContainerID, NetNS: req.NetnsPath, IfName: req.IfName, PluginArgsStr: d.Args, Path: d.Path}
	out, err := execPlugin(ctx, path, d.Conf, args.AsEnv())
	if err == nil {
		return out, nil
	}
	failure := &podapi.Error{Code: podapi.CodeInternal, Msg: fmt.Sprintf("IPAM plugin %s, %s: %v", d.Type, verb, err)}
	if told := (*types.Error)(nil); errors.As(err, &told) && told.Code != 0 {
		failure.Code = told.Code
	}
	return nil, failure
}

// add asks for addresses.
func (d *Delegation) add(ctx context.Context, req Request) (*types100.Result, error) {
	out, err := d.run(ctx, "ADD", req)
	if err != nil {
		return nil, err
	}
	version, err := create.DecodeVersion(d.Conf)
	if err == nil {
		var r *types100.Result
		if r, err = decodeResult(version, out); err == nil {
			return r, nil
		}
	}
	return nil, fmt.Errorf("result of IPAM plugin %s: %w", d.Type, err)
}

// decodeResult reads a result, which is of the configuration's version unless it says otherwise.
func decodeResult(version string, text []byte) (*types100.Result, error) {
	var own struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(text, &own); err != nil {
		return nil, err
	}
	r, err := create.Create(cmp.Or(own.CNIVersion, version), text)
	if err != nil {
		return nil, err
	}
	return types100.NewResultFromResult(r)
}

// delegate has the IPAM plugin give out the addresses. It comes when the device is in the pod, under its name,
// since a plugin may want to use it. Its DEL follows a failing ADD, too: half an allocation may be left. What a
// plugin gives out outlives us, so the record comes first, by which the next start after a kill gives it back.
func (t *addition) delegate() error {
	d := t.a.IPAM
	if d == nil {
		return nil
	}
	n := t.m.networkOf(t.a.VNI)
	if d.Type == dhcp {
		if err := t.openForDHCP(n); err != nil {
			return err
		}
	}
	t.onUndo(func() error {
		if _, err := d.run(context.WithoutCancel(t.ctx), "DEL", t.req); err != nil {
			return err // and keep the record: the next start tries again
		}
		return t.m.store.delete(t.a.Key())
	})
	begun := t.a
	begun.Pending = true
	if err := t.m.store.put(begun); err != nil {
		return err
	}
	r, err := d.add(t.ctx, t.req)
	if err == nil {
		err = t.m.at("ADD: adopt the plugin's addresses")
	}
	if err == nil && d.Type == dhcp {
		err = t.closeForDHCP()
	}
	if err != nil {
		return err
	}
	if err := n.adopt(&t.a, r); err != nil {
		return err
	}
	link, err := t.pod.LinkByName(t.a.IfName)
	if err != nil {
		return err
	}
	return t.m.renewCopies(t.pod, link, t.a) // which were made without the addresses
}

// openForDHCP lets the pod's frames through before it has an address, on a segment where a server may be. Of
// a network with routes all addresses are known.
func (t *addition) openForDHCP(n *network) error {
	if n.routed {
		return wrong("ipam.type", t.a.IPAM.Type, "the node's own network is routed and has no DHCP server; use it in an L2 network ('networks' in tapyard.yaml), here host-local, static or none")
	}
	if err := t.pod.LinkSetUp(t.link); err != nil {
		return fmt.Errorf("raise %s: %w", t.a.IfName, err)
	}
	// For this process alone: what the service manager keeps, it would keep of an ADD that fails or is killed as well.
	if err := t.m.publish(t.a, t.dev, t.a.isLocated()); err != nil {
		return err
	}
	t.onUndo(t.closeForDHCP)
	return nil
}

// closeForDHCP takes back what openForDHCP did; twice is once.
func (t *addition) closeForDHCP() error {
	key := t.a.Key()
	if e, _ := t.m.get(key); e.dev == nil {
		return nil
	}
	if err := t.m.cfg.Withdraw(context.WithoutCancel(t.ctx), t.a); err != nil {
		return fmt.Errorf("withdraw: %w", err)
	}
	t.m.unpublish(key)
	return nil
}

// adopt gives the attachment what an IPAM plugin answered, as far as the network can serve it. An address of
// the pool is taken out of it, so that nobody else gets it.
func (n *network) adopt(a *Attachment, r *types100.Result) error {
	d := *a.IPAM
	if len(r.IPs) == 0 && n.routed {
		return fmt.Errorf("IPAM plugin %s gave no address", d.Type)
	}
	d.DNS = r.DNS
	for _, ip := range r.IPs {
		addr, gw := prefixOf(&ip.Address), addrOf(ip.Gateway)
		if err := n.adoptAddress(a.Key(), addr, gw); err != nil {
			return fmt.Errorf("IPAM plugin %s gave %v: %w", d.Type, addr, err)
		}
		a.Addresses, d.Gateways = append(a.Addresses, addr), append(d.Gateways, gw)
	}
	for _, route := range r.Routes {
		to := Route{Dst: prefixOf(&route.Dst).Masked(), GW: addrOf(route.GW)}
		if !hasRoute(a.Routes, to.Dst) { // the configuration's own come first
			a.Routes = append(a.Routes, to)
		}
	}
	a.IPAM = &d
	a.addDefaults(n)
	return nil
}

// adoptAddress says why the network can't serve a pod with that address. Outside of the pod subnets it is
// reached from this node only: peers have no route to it.
func (n *network) adoptAddress(key string, addr netip.Prefix, gw netip.Addr) error {
	a := addr.Addr()
	if !a.IsGlobalUnicast() {
		return podapi.Errorf(podapi.CodeInvalidConf, "want a unicast address that leaves its link")
	}
	p := n.pool(a)
	if p == nil && n.routed {
		return podapi.Errorf(podapi.CodeInvalidConf, "this node has pod subnets %v, none of that family; add one to 'podSubnets' in tapyard.yaml, or have the plugin give out another", n.subnets())
	}
	if p == nil || !p.Subnet().Contains(a) {
		if gw.IsValid() && (!addr.Contains(gw) || gw == a) {
			return podapi.Errorf(podapi.CodeInvalidConf, "gateway %v: want another address of %v", gw, addr.Masked())
		}
		return nil
	}
	if addr.Bits() != p.Subnet().Bits() {
		return podapi.Errorf(podapi.CodeInvalidConf, "want the length of pod subnet %v, or the pod would look for other nodes' pods on its own link, or for its gateway elsewhere", p.Subnet())
	}
	if gw.IsValid() && n.routed && gw != p.Gateway() {
		return podapi.Errorf(podapi.CodeInvalidConf, "gateway %v: the gateway of pod subnet %v is %v", gw, p.Subnet(), p.Gateway())
	}
	return refusedClaim(p.Claim(a, key))
}

func addrOf(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func hasRoute(routes []Route, dst netip.Prefix) bool {
	return slices.ContainsFunc(routes, func(r Route) bool { return r.Dst == dst })
}

// addDefaults completes the routes of a pod whose addresses a plugin gave: each without a next hop gets the
// gateway of its family, and in a network with routes each family gets a default route.
func (a *Attachment) addDefaults(n *network) {
	for i, addr := range a.Addresses {
		gw := a.IPAM.Gateways[i]
		if !gw.IsValid() && n.routed {
			gw = n.pool(addr.Addr()).Gateway()
		}
		if !gw.IsValid() {
			continue
		}
		for k := range a.Routes {
			if r := &a.Routes[k]; !r.GW.IsValid() && r.Dst.Addr().Is4() == gw.Is4() {
				r.GW = gw
			}
		}
		if dst := defaultOf(gw); n.routed && !hasRoute(a.Routes, dst) {
			a.Routes = append(a.Routes, Route{Dst: dst, GW: gw})
		}
	}
}

// releaseIPAM calls the DEL of the plugin that gave out the addresses: the recorded one or, of an ADD that was
// killed before its record, the one that the request's own configuration names.
func (m *Manager) releaseIPAM(ctx context.Context, a Attachment, req Request) error {
	d := a.IPAM
	if d == nil {
		d = req.Conf.IPAM
	}
	if d == nil {
		return nil
	}
	_, err := d.run(ctx, "DEL", req)
	return err
}

// checkIPAM has the plugin that gave out the attachment's addresses check them, if there is one. It gets the
// request's configuration, whose prevResult it may want to compare.
func checkIPAM(ctx context.Context, a Attachment, req Request) error {
	if a.IPAM == nil {
		return nil
	}
	d := cmp.Or(req.Conf.IPAM, a.IPAM)
	_, err := d.run(ctx, "CHECK", req)
	return err
}

// callIPAM passes a verb that belongs to no attachment, GC or STATUS, on to the plugin that the configuration
// names, if it names one. Both are verbs since version 1.1.0, and older plugins don't know them.
func callIPAM(ctx context.Context, verb string, conf Conf) error {
	if conf.IPAM == nil || conf.CNIVersion != types100.ImplementedSpecVersion {
		return nil
	}
	_, err := conf.IPAM.run(ctx, verb, Request{})
	return err
}
