package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/attach"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Links are the ports that routes lead to besides those of pods.
type Links struct {
	Host    port.ID
	HostMAC wire.MAC // tapyard0's own
	Tunnel  port.ID
	VTEPs   *encap.VTEPTable
}

// Controller keeps the switch's tables in step with the State and with the pods of this node.
type Controller struct {
	sw    *vswitch.Switch
	node  Node
	links Links

	mu     sync.Mutex
	state  State
	routes map[netip.Prefix]vswitch.Adjacency // from the state
	pods   map[podKey]pod
}

// pod is an attachment at its port.
type pod struct {
	id      port.ID
	a       attach.Attachment
	leaving bool // RemovePod has taken its routes away
}

// New returns a controller for a node; l2 nodes have no links and no state.
func New(sw *vswitch.Switch, node Node, links Links) *Controller {
	sw.SetMTU(node.MTU)
	sw.SetFlows(node.Flows)
	return &Controller{sw: sw, node: node, links: links,
		routes: map[netip.Prefix]vswitch.Adjacency{}, pods: map[podKey]pod{}}
}

// Apply validates the state and brings the switch to it, or changes nothing and says what is wrong. Peers
// are known before the routes to them, and forgotten after.
func (c *Controller) Apply(s State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.apply(s)
}

func (c *Controller) apply(s State) error {
	if err := s.Validate(&c.node); err != nil {
		return err
	}
	peers, old, known := c.vteps(s), c.vteps(c.state), c.links.VTEPs.Peers()
	if err := c.links.VTEPs.Set(union(peers, old)); err != nil {
		return err
	}
	routes := c.compile(s)
	if err := c.sw.UpdateRoutes(c.node.VNI, diff(c.routes, routes)); err != nil {
		return errors.Join(err, c.links.VTEPs.Set(old))
	}
	c.state, c.routes = s, routes
	err := errors.Join(c.flood(peers), c.links.VTEPs.Set(peers))
	c.forget(known)
	return err
}

// flood makes the peers the flood list of each stretched network.
func (c *Controller) flood(peers []encap.Peer) error {
	list := make([]uint32, 0, len(peers))
	for _, p := range peers {
		list = append(list, c.links.VTEPs.LookupName(p.Name).Index)
	}
	var errs []error
	for _, vni := range c.node.Stretched {
		errs = append(errs, c.sw.SetFlood(vni, list))
	}
	return errors.Join(errs...)
}

// forget has the switch forget the stations behind those peers that are gone, by leaving or, under a new index,
// by moving to another address.
func (c *Controller) forget(known []encap.Peer) {
	for _, p := range known {
		if c.links.VTEPs.Lookup(p.Index) == nil {
			c.sw.ForgetPeer(c.links.Tunnel, p.Index)
		}
	}
}

// SetMTU changes the MTU of pods and host, and what tunnels carry, both in bytes: of the pods that are
// attached and of those to come.
func (c *Controller) SetMTU(pods, tunnel int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node.MTU, c.node.TunnelMTU = pods, tunnel
	c.sw.SetMTU(pods)
	var errs []error
	for _, p := range c.pods {
		if !p.leaving {
			errs = append(errs, c.routePod(&p))
		}
	}
	return errors.Join(append(errs, c.apply(c.state))...)
}

// Rules are what the node holds its pods and peers to, which may change while they are there; as in Node.
type Rules struct {
	Guard bool
	BUM   int
	Flows bool
}

// SetRules changes the rules for the ports that are there and for those to come.
func (c *Controller) SetRules(r Rules) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node.Guard, c.node.BUM, c.node.Flows = r.Guard, r.BUM, r.Flows
	c.sw.SetFlows(r.Flows)
	var errs []error
	for _, p := range c.pods {
		if !p.leaving {
			errs = append(errs, c.sw.Configure(p.id, c.guard(p.a), r.BUM))
		}
	}
	if c.links.Tunnel != port.Local { // that is, in mode routed
		errs = append(errs, c.sw.Configure(c.links.Tunnel, nil, r.BUM))
	}
	return errors.Join(errs...)
}

// guard returns what the pod is held to. Whoever brings his own addresses can't be held to ours.
func (c *Controller) guard(a attach.Attachment) *vswitch.Station {
	if addrs := a.Addrs(); c.node.Guard && len(addrs) > 0 {
		return &vswitch.Station{MAC: a.MAC, Addrs: addrs}
	}
	return nil
}

// State returns what was applied last.
func (c *Controller) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Node returns this node with the MTUs that are in force. Its slices are not to be changed.
func (c *Controller) Node() Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node
}

func (c *Controller) vteps(s State) []encap.Peer {
	var peers []encap.Peer
	for i := range s.Peers {
		p := &s.Peers[i]
		if vtep, ok := p.VTEP(c.node.Underlay[0]); ok && p.Name != c.node.Name {
			peers = append(peers, encap.Peer{Name: p.Name, Underlay: vtep, MAC: p.RouterMAC()})
		}
	}
	return peers
}

// union returns a and those of b that a doesn't have; of two peers with one name or address a's stays.
func union(a, b []encap.Peer) []encap.Peer {
	names, underlays := make(map[string]bool, len(a)), make(map[netip.Addr]bool, len(a))
	for _, p := range a {
		names[p.Name], underlays[p.Underlay] = true, true
	}
	all := slices.Clone(a)
	for _, p := range b {
		if !names[p.Name] && !underlays[p.Underlay] {
			all = append(all, p)
		}
	}
	return all
}

// nowhere are destinations that no router forwards to: RFC 1812 section 5.3.7, RFC 4291 section 2.5.6.
var nowhere = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/128"), netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// compile returns the node's routes except those to its pods: ARCHITECTURE's network model, line "FIB".
func (c *Controller) compile(s State) map[netip.Prefix]vswitch.Adjacency {
	n := &c.node
	host := vswitch.Adjacency{Kind: vswitch.AdjForward, MTU: uint16(n.MTU), DstMAC: c.links.HostMAC,
		SrcMAC: n.RouterMAC, Dest: port.Dest{Port: c.links.Host}}
	own := host
	own.Own = true
	routes := map[netip.Prefix]vswitch.Adjacency{}
	for _, p := range nowhere {
		routes[p] = vswitch.Adjacency{Kind: vswitch.AdjNoRoute}
	}
	routes[netip.MustParsePrefix("0.0.0.0/0")], routes[netip.MustParsePrefix("::/0")] = host, host
	for _, p := range s.ClusterCIDRs {
		routes[p] = vswitch.Adjacency{Kind: vswitch.AdjNoRoute}
	}
	for i := range s.Peers {
		c.compilePeer(routes, &s.Peers[i])
	}
	for _, a := range n.Underlay {
		routes[single(a)] = own
	}
	for _, p := range n.PodSubnets {
		routes[p] = vswitch.Adjacency{Kind: vswitch.AdjNoNeighbor}
		routes[single(attach.Gateway(p))] = own
		routes[single(attach.Local(p))] = vswitch.Adjacency{Kind: vswitch.AdjLocal}
	}
	return routes
}

func (c *Controller) compilePeer(routes map[netip.Prefix]vswitch.Adjacency, p *Peer) {
	if p.Name == c.node.Name {
		return
	}
	adj := vswitch.Adjacency{Kind: vswitch.AdjForward, Tunnel: true, MTU: uint16(c.node.TunnelMTU),
		DstMAC: p.RouterMAC(), SrcMAC: c.node.RouterMAC,
		Dest: port.Dest{Port: c.links.Tunnel, Peer: c.links.VTEPs.LookupName(p.Name).Index}}
	for _, prefix := range p.PodSubnets {
		routes[prefix] = adj
	}
	for _, a := range p.Underlay {
		routes[single(a)] = adj
	}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// diff returns the changes that lead from one set of routes to another.
func diff(from, to map[netip.Prefix]vswitch.Adjacency) []vswitch.RouteChange {
	var changes []vswitch.RouteChange
	for prefix, adj := range to {
		if old, same := from[prefix]; !same || old != adj {
			changes = append(changes, vswitch.RouteChange{Prefix: prefix, Adjacency: &adj})
		}
	}
	for prefix := range maps.Keys(from) {
		if _, stays := to[prefix]; !stays {
			changes = append(changes, vswitch.RouteChange{Prefix: prefix})
		}
	}
	return changes
}

// AddPod connects a pod: its port, then its MAC and addresses, then the routes to it.
func (c *Controller) AddPod(a attach.Attachment, p port.Port) (err error) {
	if err := c.checkPod(&a); err != nil {
		return err
	}
	addrs := a.Addrs()
	id, err := c.sw.Attach(p, c.portConfig(a))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.detach(context.Background(), id))
		}
	}()
	if err := c.sw.AddStation(a.VNI, id, a.MAC, addrs); err != nil {
		return err
	}
	return c.admit(pod{id: id, a: a})
}

func (c *Controller) portConfig(a attach.Attachment) vswitch.PortConfig {
	c.mu.Lock()
	defer c.mu.Unlock()
	cfg := vswitch.PortConfig{Role: vswitch.RoleAccess, VNI: a.VNI, BUM: c.node.BUM, SYN: vswitch.DefaultSYN, Guard: c.guard(a)}
	if b := a.Bandwidth; b != nil {
		cfg.Sent, cfg.Received = vswitch.Rate{Bits: b.EgressRate, Burst: b.EgressBurst}, vswitch.Rate{Bits: b.IngressRate, Burst: b.IngressBurst}
	}
	return cfg
}

// admit routes to the pod and notes it, at once: a SetMTU comes before and is obeyed, or after and knows it.
func (c *Controller) admit(p pod) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.routePod(&p); err != nil {
		return err
	}
	if err := c.answerFor(&p.a); err != nil {
		return err
	}
	c.pods[keyOf(p.a)] = p
	return c.sw.Configure(p.id, c.guard(p.a), c.node.BUM) // the rules may have changed meanwhile
}

// routePod routes to the pod, if its network is the one with routes. The MTU is the node's, which the pod's
// device follows: what an ADD was told may have changed since.
func (c *Controller) routePod(p *pod) error {
	if p.a.VNI != c.node.VNI {
		return nil
	}
	mtu := c.node.MTU
	if limit := p.a.MTULimit; limit > 0 {
		mtu = min(mtu, limit)
	}
	adj := vswitch.Adjacency{Kind: vswitch.AdjForward, MTU: uint16(mtu), DstMAC: p.a.MAC,
		SrcMAC: c.node.RouterMAC, Dest: port.Dest{Port: p.id}}
	if err := c.sw.UpdateRoutes(p.a.VNI, hostRoutes(p.a.Addrs(), &adj)); err != nil {
		return fmt.Errorf("pod %s: %w", p.a.Name, err)
	}
	return nil
}

// RemovePod disconnects a pod. When it returns without an error, no worker touches its port any more;
// after an error it may be called again.
func (c *Controller) RemovePod(ctx context.Context, a attach.Attachment) error {
	p, known, err := c.unroute(a)
	if !known || err != nil {
		return err
	}
	if err := c.detach(ctx, p.id); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, keyOf(a))
	c.forgetGateways(&a)
	return nil
}

// ProbePod asks the pod for each of the addresses, one after the other, through its port, and waits for the answers:
// see vswitch.Switch.Probe. Without addresses it says whether the pod is connected.
func (c *Controller) ProbePod(ctx context.Context, a attach.Attachment, addrs []netip.Addr) error {
	c.mu.Lock()
	p, known := c.pods[keyOf(a)]
	c.mu.Unlock()
	if !known || p.leaving {
		return errors.New("the pod is not connected to the switch")
	}
	for _, addr := range addrs {
		if err := c.sw.Probe(ctx, p.id, a.MAC, addr); err != nil {
			return err
		}
	}
	return nil
}

// unroute takes the routes to the pod away, for good: until it is detached, and its port's number perhaps
// another's, a SetMTU must not bring them back.
func (c *Controller) unroute(a attach.Attachment) (p pod, known bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, known = c.pods[keyOf(a)]; !known || a.VNI != c.node.VNI {
		return p, known, nil
	}
	if err := c.sw.UpdateRoutes(a.VNI, hostRoutes(a.Addrs(), nil)); err != nil {
		return p, known, fmt.Errorf("pod %s: %w", a.Name, err)
	}
	p.leaving = true
	c.pods[keyOf(a)] = p
	return p, known, nil
}

func hostRoutes(addrs []netip.Addr, adj *vswitch.Adjacency) []vswitch.RouteChange {
	var changes []vswitch.RouteChange
	for _, a := range addrs {
		changes = append(changes, vswitch.RouteChange{Prefix: single(a), Adjacency: adj})
	}
	return changes
}

// detachTimeout is for a worker that never passes a quiescent point, which would be a bug: a burst takes
// microseconds.
const detachTimeout = 5 * time.Second

func (c *Controller) detach(ctx context.Context, id port.ID) error {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	return c.sw.Detach(ctx, id)
}

// podKey identifies an attachment as the CNI specification does.
type podKey struct{ container, ifName string }

func keyOf(a attach.Attachment) podKey { return podKey{a.ContainerID, a.IfName} }
