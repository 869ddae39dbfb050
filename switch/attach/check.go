package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/cniplugin/podapi"
)

// Read the CNI specification 1.1, section 2, CHECK, first. Plugins that were chained behind this one have had their
// way with the pod: what they took out of the result is not asked for, and what they added is not looked at.

func (m *Manager) handleCheck(ctx context.Context, r Request, stdin []byte) error {
	var conf struct {
		CNIVersion string          `json:"cniVersion"`
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return podapi.Errorf(podapi.CodeDecode, "decode the network configuration: %v", err)
	}
	if len(conf.PrevResult) == 0 {
		return podapi.Errorf(podapi.CodeInvalidConf, "key \"prevResult\" is missing: CHECK compares with the result of ADD")
	}
	raw, err := version.NewResult(conf.CNIVersion, conf.PrevResult)
	if err != nil {
		return podapi.Errorf(podapi.CodeDecode, "decode key \"prevResult\": %v", err)
	}
	prev, err := types100.GetResult(raw)
	if err != nil {
		return podapi.Errorf(podapi.CodeDecode, "key \"prevResult\": %v", err)
	}
	return m.Check(ctx, r, prev)
}

// Check holds an attachment against the result of its ADD and the pod as it is, and at last sends a frame through its
// port and waits for what comes back (Config.Probe). The error is a *podapi.Error that names all that is wrong.
// It takes some 1 ms, and a second more if no frame comes back.
func (m *Manager) Check(ctx context.Context, req Request, prev *types100.Result) error {
	defer m.locks.lock(req.key())()
	e, known := m.get(req.key())
	if !known {
		return podapi.Errorf(podapi.CodeUnknown, "check %s: no such attachment: it was never added, or deleted since", req.key())
	}
	wrong := m.inspect(ctx, e, req, prev)
	if len(wrong) == 0 {
		return nil
	}
	return podapi.Errorf(podapi.CodeBroken, "check %s, port %s: %s", req.key(), e.a.Name, strings.Join(wrong, "; "))
}

// findings is what is wrong with an attachment, in words.
type findings []string

func (f *findings) add(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }

func (m *Manager) inspect(ctx context.Context, e entry, req Request, prev *types100.Result) (wrong findings) {
	switch {
	case e.fail != nil:
		wrong.add("not connected: %v", e.fail)
		return wrong
	case e.dev == nil:
		wrong.add("not connected: the agent could not restore it, its log says why; create the pod anew")
		return wrong
	case e.dev.Gone():
		wrong.add("its device was deleted")
		return wrong
	}
	if id, err := m.identify(req.NetnsFD); err != nil || id != e.a.netns() {
		wrong.add("CNI_NETNS %s is not the namespace that the pod was added in, %s", req.NetnsPath, e.a.NetnsPath)
		return wrong
	}
	p, err := openPod(req.NetnsFD)
	if err != nil {
		wrong.add("%v", err)
		return wrong
	}
	defer p.Close()
	c := inspection{a: e.a, prev: prev, pod: p}
	c.run()
	if err := checkIPAM(ctx, e.a, req); err != nil {
		c.wrong.add("%v", err)
	}
	if err := checkPorts(e.a); err != nil {
		c.wrong.add("%v", err)
	}
	if len(c.wrong) > 0 || m.cfg.Probe == nil {
		return c.wrong
	}
	if err := m.cfg.Probe(ctx, e.a, c.asked()); err != nil {
		c.wrong.add("%v", err)
	}
	return c.wrong
}

// inspection is a Check's look into the pod.
type inspection struct {
	a     Attachment
	prev  *types100.Result
	pod   *pod
	link  netlink.Link
	addrs []netlink.Addr // of link
	wrong findings
}

func (c *inspection) run() {
	c.result()
	var err error
	if c.link, err = c.pod.ours(c.a.Key()); err != nil {
		c.wrong.add("the pod lacks device %s as ADD has made it: %v", c.a.IfName, err)
		return
	}
	c.device()
	if c.addrs, err = retried(func() ([]netlink.Addr, error) { return c.pod.AddrList(c.link, netlink.FAMILY_ALL) }); err != nil {
		c.wrong.add("list the addresses of %s: %v", c.a.IfName, err)
		return
	}
	c.addresses()
	c.routes()
}

// retried repeats a question that a change in the pod has interrupted.
func retried[T any](ask func() ([]T, error)) (list []T, err error) {
	for range 4 {
		if list, err = ask(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

// result compares what the runtime believes that ADD has made with the record.
func (c *inspection) result() {
	at := slices.IndexFunc(c.prev.Interfaces, func(i *types100.Interface) bool { return i.Name == c.a.IfName && i.Sandbox != "" })
	if at < 0 {
		c.wrong.add("prevResult has no interface %s in a sandbox", c.a.IfName)
		return
	}
	if got := c.prev.Interfaces[at].Mac; got != "" && !strings.EqualFold(got, c.a.MAC.String()) {
		c.wrong.add("prevResult says that %s has MAC %s, the switch knows it by %v", c.a.IfName, got, c.a.MAC)
	}
	for _, want := range c.a.Addresses {
		if !slices.ContainsFunc(c.prev.IPs, func(ip *types100.IPConfig) bool {
			return ip.Address.String() == want.String() && (ip.Interface == nil || *ip.Interface == at)
		}) {
			c.wrong.add("prevResult lacks address %v of %s", want, c.a.IfName)
		}
	}
}

// device checks what frames need. Another MAC than the recorded one, of whomever, cuts the pod off: nobody asks for it.
// A lower MTU is allowed, because the plugin "tuning" sets one and tells nobody; a higher one loses packets.
func (c *inspection) device() {
	at := c.link.Attrs()
	if at.Name != c.a.IfName {
		c.wrong.add("device %s is called %s", c.a.IfName, at.Name)
	}
	if at.HardwareAddr.String() != c.a.MAC.String() {
		c.wrong.add("device %s has MAC %v, the switch knows it by %v", c.a.IfName, at.HardwareAddr, c.a.MAC)
	}
	if at.MTU > c.a.MTU {
		c.wrong.add("device %s has MTU %d, its network carries %d", c.a.IfName, at.MTU, c.a.MTU)
	}
	switch {
	case at.Flags&net.FlagUp == 0:
		c.wrong.add("device %s is down", c.a.IfName)
	case at.RawFlags&unix.IFF_LOWER_UP == 0:
		c.wrong.add("device %s has no carrier", c.a.IfName)
	}
}

func (c *inspection) addresses() {
	for _, want := range c.a.Addresses {
		at := slices.IndexFunc(c.addrs, func(a netlink.Addr) bool { return a.IPNet.String() == want.String() })
		switch {
		case at < 0:
			c.wrong.add("device %s lacks address %v", c.a.IfName, want)
		case c.addrs[at].Flags&(unix.IFA_F_DADFAILED|unix.IFA_F_TENTATIVE) != 0:
			c.wrong.add("address %v of %s is not usable: duplicate address detection has not ended well", want, c.a.IfName)
		}
	}
}

// routes looks for those of ADD's routes that the result still has. The plugin "sbr" moves them into a table of its own,
// and a pod's earlier interface keeps a route to the same destination.
func (c *inspection) routes() {
	var want []netlink.Route
	for _, r := range c.a.AllRoutes() {
		route := podRoute(c.link, c.a, r)
		if slices.ContainsFunc(c.prev.Routes, func(r *types.Route) bool {
			return r.Dst.String() == route.Dst.String() && (r.GW == nil || r.GW.Equal(route.Gw))
		}) {
			want = append(want, *route)
		}
	}
	if want == nil {
		return
	}
	all, err := retried(func() ([]netlink.Route, error) {
		return c.pod.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		c.wrong.add("list the pod's routes: %v", err)
		return
	}
	for _, w := range want {
		if !slices.ContainsFunc(all, func(r netlink.Route) bool { return serves(r, w) }) {
			c.wrong.add("the pod lacks the route to %v via %v", w.Dst, w.Gw)
		}
	}
}

// serves says whether the pod's route is the one that is wanted, or one to the same destination that was there before.
func serves(have, want netlink.Route) bool {
	if have.Type != unix.RTN_UNICAST || have.Dst == nil || have.Dst.String() != want.Dst.String() {
		return false
	}
	return have.LinkIndex != want.LinkIndex || have.Gw.Equal(want.Gw)
}

// asked returns the addresses that the pod must answer for: its own. One that brings addresses of its own answers for
// those that its device has just now, if it has any.
func (c *inspection) asked() (addrs []netip.Addr) {
	if len(c.a.Addresses) > 0 {
		return c.a.Addrs()
	}
	for _, a := range c.addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && a.Flags&(unix.IFA_F_DADFAILED|unix.IFA_F_TENTATIVE) == 0 {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}
