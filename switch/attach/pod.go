package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// txQueueLen is how many frames a device holds for us. A full ring drops silently, and 1,000 frames are
// 1 ms of the fastest pod, or a second of 1,000 a second while no agent runs. More cost cache under full load: with
// 2,048 or 4,096 a CPU second moves some 5 % fewer (bench pps, a Xeon with 2 MiB of L2).
const txQueueLen = 1000

// pod is a pod's network namespace, reached by netlink. Close it: its socket keeps the namespace alive.
type pod struct {
	*netlink.Handle
	fd   int  // the caller's
	loUp bool // when it was opened
	ipv6 bool // the attachment's device takes IPv6 addresses since it was made
}

func openPod(fd int) (*pod, error) {
	p := &pod{fd: fd}
	err := inNetns(fd, func() (err error) {
		if p.Handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		flags, err := linkIoctl("lo", unix.SIOCGIFFLAGS)
		p.loUp = err == nil && flags.Uint16()&unix.IFF_UP != 0
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reach the pod's namespace: %w", err)
	}
	return p, nil
}

// linkIoctl asks about a device in the calling thread's network namespace, other than rtnetlink without the lock under which
// devices are changed.
func linkIoctl(name string, question uint) (*unix.Ifreq, error) {
	answer, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("ask for device %s: open socket: %w", name, err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlIfreq(fd, question, answer); err != nil {
		return nil, fmt.Errorf("ask for device %s: %w", name, err)
	}
	return answer, nil
}

// linkIndex is of a device in the calling thread's network namespace.
func linkIndex(name string) (int, error) {
	answer, err := linkIoctl(name, unix.SIOCGIFINDEX)
	if err != nil {
		return 0, err
	}
	return int(answer.Uint32()), nil
}

// dress sets at once what a TAP in the calling thread's network namespace has from the start. With ipv6 it does what enableIPv6
// does later.
func dress(index int, a Attachment, alias string, ipv6 bool) error {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, a.MAC[:]))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(a.MTU))))
	req.AddData(nl.NewRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(txQueueLen)))
	if ipv6 {
		inet6 := nl.NewRtAttr(unix.AF_INET6, nl.NewRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{nl.IN6_ADDR_GEN_MODE_EUI64}).Serialize())
		req.AddData(nl.NewRtAttr(unix.IFLA_AF_SPEC, inet6.Serialize()))
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set the alias of %s, its MAC %v, its MTU %d, its txqueuelen %d and, if it gets an IPv6 address, its addr_gen_mode (does the kernel have IPv6?): %w",
			a.IfName, a.MAC, a.MTU, txQueueLen, err)
	}
	if ipv6 {
		return allowIPv6(a.IfName)
	}
	return nil
}

func isNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none)
}

func (p *pod) links() ([]netlink.Link, error) {
	links, err := retried(p.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the pod's devices: %w", err)
	}
	return links, nil
}

// ours finds the attachment's device by its alias, because a kill may have left it with its temporary name.
// The error wraps errGone if there is none.
func (p *pod) ours(key string) (netlink.Link, error) {
	links, err := p.links()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if isAliasOf(link.Attrs().Alias, key) {
			return link, nil
		}
	}
	return nil, fmt.Errorf("device with alias %s%s %w", aliasPrefix, key, errGone)
}

// remove deletes the attachment's device, if it is there.
func (p *pod) remove(key string) error {
	link, err := p.ours(key)
	if errors.Is(err, errGone) {
		return nil
	}
	if err == nil {
		err = p.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the pod's device: %w", err)
	}
	return nil
}

// configure raises the device and gives it routes, of which those that are there stay: in a pod with several
// interfaces the default route of the first one.
func (p *pod) configure(link netlink.Link, a Attachment) error {
	if _, err := p.raise(link, a); err != nil {
		return err
	}
	return p.addRoutes(link, a)
}

// reconfigure is configure for a pod whose agent was away. Routes are given anew to one that has lost addresses only,
// and its routes with them: plugins behind us in the chain may have moved them into tables of their own.
func (p *pod) reconfigure(link netlink.Link, a Attachment) error {
	lost, err := p.raise(link, a)
	if err != nil || !lost {
		return err
	}
	return p.addRoutes(link, a)
}

func (p *pod) addRoutes(link netlink.Link, a Attachment) error {
	for _, r := range a.AllRoutes() {
		if err := p.RouteAdd(podRoute(link, a, r)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add the route to %v via %v: %w", r.Dst, r.GW, err)
		}
	}
	return nil
}

// loopback is lo: each namespace's first device (LOOPBACK_IFINDEX in the kernel's net/flow.h).
var loopback = &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}

// raise gives the device its addresses, of which those that are there stay, and raises it. It says whether any was
// not there.
func (p *pod) raise(link netlink.Link, a Attachment) (added bool, err error) {
	if added, err = p.addAddresses(link, a.Addresses); err != nil {
		return added, err
	}
	if !p.loUp {
		if err := p.LinkSetUp(loopback); err != nil {
			return added, fmt.Errorf("raise lo: %w", err)
		}
	}
	if err := p.LinkSetUp(link); err != nil {
		return added, fmt.Errorf("raise %s: %w", a.IfName, err)
	}
	return added, nil
}

func (p *pod) addAddresses(link netlink.Link, addrs []netip.Prefix) (added bool, err error) {
	for _, addr := range addrs {
		na := &netlink.Addr{IPNet: ipNet(addr)}
		if addr.Addr().Is6() {
			na.Flags = unix.IFA_F_NODAD // unique by allocation, and usable at once
			if err := p.enableIPv6(link); err != nil {
				return added, err
			}
		}
		err := p.AddrAdd(link, na)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return added, fmt.Errorf("add address %v: %w", addr, err)
		}
		added = added || err == nil
	}
	return added, nil
}

// enableIPv6 undoes what some runtimes write into a new namespace, and has the kernel make the link-local
// address out of the MAC, since the switch's source guard expects that one.
func (p *pod) enableIPv6(link netlink.Link) error {
	if p.ipv6 {
		return nil
	}
	if err := inNetns(p.fd, func() error { return allowIPv6(link.Attrs().Name) }); err != nil {
		return err
	}
	if err := p.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_EUI64); err != nil {
		return fmt.Errorf("set addr_gen_mode eui64: %w", err)
	}
	return nil
}

// allowIPv6 is called in the pod's namespace.
func allowIPv6(device string) error {
	file := "/proc/sys/net/ipv6/conf/" + device + "/disable_ipv6"
	value, err := os.ReadFile(file)
	if err == nil && strings.TrimSpace(string(value)) != "0" {
		err = os.WriteFile(file, []byte("0"), 0)
	}
	if err != nil {
		return fmt.Errorf("enable IPv6 in the pod (does the kernel have it?): %w", err)
	}
	return nil
}

// podRoute says "onlink" of a gateway that is in none of the pod's prefixes.
func podRoute(link netlink.Link, a Attachment, r Route) *netlink.Route {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.Dst), Gw: r.GW.AsSlice()}
	switch {
	case !r.GW.IsValid():
		route.Scope = netlink.SCOPE_LINK
	case !a.onLink(r.GW):
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	return route
}

// onLink says whether one of the pod's prefixes has the address.
func (a Attachment) onLink(to netip.Addr) bool {
	return to.IsLinkLocalUnicast() || slices.ContainsFunc(a.Addresses, func(p netip.Prefix) bool { return p.Masked().Contains(to) })
}

// defaultOf returns 0.0.0.0/0 or ::/0.
func defaultOf(a netip.Addr) netip.Prefix {
	p, _ := a.Prefix(0)
	return p
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// removeTemporary deletes the devices that a kill left in the agent's namespace.
func removeTemporary(prefix string) error {
	links, err := retried(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, link := range links {
		if !strings.HasPrefix(link.Attrs().Name, prefix) {
			continue
		}
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("remove the leftover device %s: %w", link.Attrs().Name, err)
		}
	}
	return nil
}
