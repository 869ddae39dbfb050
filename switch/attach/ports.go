package attach

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/cniplugin/podapi"
)

// Ports of the node that lead to pods are further chains of the table `inet tapyard`, there while a pod has any:
//
//	chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local jump ports }
//	chain output { type nat hook output priority -100; fib daddr type local jump ports }
//	chain ports {
//		meta nfproto ipv4 tcp dport 8080 dnat ip to 10.244.1.3:80
//	}
//	chain hairpin {
//		type nat hook postrouting priority srcnat;
//		ip daddr 10.244.1.3 tcp dport 80 ct status dnat ip saddr @direct4 masquerade
//		ip daddr 10.244.1.3 tcp dport 80 ct status dnat ip saddr 127.0.0.0/8 masquerade
//	}
//
// A pod answers whoever is in @direct, other pods and nodes, through the switch and not through this host, whose
// connection tracking would have to translate the answer back: so for them the request comes from the gateway
// address. To a pod that asks for a port of its own it would come from itself. And 127.0.0.1 stays on the host;
// that the kernel routes it at all is route_localnet of tapyard0, by which no pod reaches the host's loopback: the
// switch has no route to 127.0.0.0/8. IPv6 has no such setting, so ::1 isn't mapped.

// Mapped is a port of the node that leads to a pod.
type Mapped struct {
	PortMapping
	Pod   string       // the port's name
	Addrs []netip.Addr // the pod's
}

// mappingChains are the regular chain before those that jump to it. Their jumps are one rule each, for both
// families.
var (
	portsChain      = &nftables.Chain{Name: "ports", Table: egressTable}
	preroutingChain = &nftables.Chain{Name: "prerouting", Table: egressTable, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest}
	outputChain = &nftables.Chain{Name: "output", Table: egressTable, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest}
	hairpinChain = &nftables.Chain{Name: "hairpin", Table: egressTable, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}
	mappingChains = []*nftables.Chain{portsChain, preroutingChain, outputChain, hairpinChain}
)

// SetPorts makes the ports that lead to pods those of cfg.Ports, in one transaction, and leaves the rest of the
// table alone; without the table, or when no port is left, it is a SetEgress.
func SetPorts(cfg EgressConfig) error {
	if len(cfg.Ports) == 0 {
		return SetEgress(cfg)
	}
	conn, err := nftables.New(nftables.WithSockOptions(roomForPeers))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, c := range mappingChains {
		conn.AddChain(c) // it may be there
		conn.FlushChain(c)
	}
	sets := map[byte]*nftables.Set{}
	for _, f := range families {
		sets[f.nfproto] = &nftables.Set{Table: egressTable, Name: directSet + f.suffix}
	}
	addPorts(conn, cfg.Ports, sets)
	if err := conn.Flush(); errors.Is(err, unix.ENOENT) {
		return SetEgress(cfg)
	} else if err != nil {
		return fmt.Errorf("map ports in nftables table inet %s: %w", egressTable.Name, explain(err))
	}
	return routeLocalnet(cfg.Ports)
}

// addPorts appends the rules of the mappings, whose chains are empty, to the transaction.
func addPorts(conn *nftables.Conn, ports []Mapped, direct map[byte]*nftables.Set) {
	for _, c := range []*nftables.Chain{preroutingChain, outputChain} {
		addRule(conn, c, toThisHost())
	}
	for _, p := range ports {
		for _, f := range families {
			for _, pod := range p.addrs(f) {
				comment := userdata.AppendString(nil, userdata.TypeComment, p.comment())
				conn.AddRule(&nftables.Rule{Table: egressTable, Chain: portsChain, Exprs: f.mapPort(p, pod), UserData: comment})
				for _, exprs := range f.hairpins(p, pod, direct[f.nfproto]) {
					conn.AddRule(&nftables.Rule{Table: egressTable, Chain: hairpinChain, Exprs: exprs, UserData: comment})
				}
			}
		}
	}
}

// mappingRules counts what addPorts appends to each chain.
func mappingRules(ports []Mapped) map[string]int {
	want := map[string]int{}
	if len(ports) == 0 {
		return want
	}
	want[preroutingChain.Name], want[outputChain.Name] = 1, 1
	for _, p := range ports {
		for _, f := range families {
			for _, pod := range p.addrs(f) {
				want[portsChain.Name]++
				want[hairpinChain.Name] += len(f.hairpins(p, pod, &nftables.Set{}))
			}
		}
	}
	return want
}

// checkPorts says which of the rules that lead to the attachment's pod are missing.
func checkPorts(a Attachment) error {
	if len(a.PortMappings) == 0 {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	ports := a.mapped()
	want, comment := mappingRules(ports), userdata.AppendString(nil, userdata.TypeComment, ports[0].comment())
	for _, c := range mappingChains {
		rules, err := conn.GetRules(egressTable, c) // of a chain that isn't there: none
		if err != nil {
			return fmt.Errorf("list nftables table inet %s: %w", egressTable.Name, err)
		}
		if c == portsChain || c == hairpinChain { // the others' one rule is for all pods
			rules = slices.DeleteFunc(rules, func(r *nftables.Rule) bool { return !bytes.Equal(r.UserData, comment) })
		}
		if have := len(rules); have < want[c.Name] {
			return fmt.Errorf("chain %s of nftables table inet %s has %d of %d rules that lead %v to the pod; the agent restores what others remove within half a minute",
				c.Name, egressTable.Name, have, want[c.Name], a.PortMappings)
		}
	}
	return nil
}

// comment fits into the 128 bytes that the nft tool shows.
func (p Mapped) comment() string {
	return fmt.Sprintf("%.80s; managed by tapyard", p.Pod)
}

// addrs returns the pod's addresses of the family, unless the mapping is for an address of the other one.
func (p Mapped) addrs(f family) []netip.Addr {
	v4 := f.multicast.Addr().Is4()
	return slices.DeleteFunc(slices.Clone(p.Addrs), func(a netip.Addr) bool {
		return a.Is4() != v4 || p.HostIP.IsValid() && p.HostIP.Is4() != v4
	})
}

func toThisHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: portsChain.Name},
	}
}

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// toPort matches the family's packets of the protocol to the port.
func (f family) toPort(proto string, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nfproto}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocols[proto]}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// destination compares the destination address.
func (f family) destination(op expr.CmpOp, a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.source + f.address.Bytes, Len: f.address.Bytes},
		&expr.Cmp{Op: op, Register: 1, Data: a.AsSlice()},
	}
}

func (f family) mapPort(p Mapped, pod netip.Addr) []expr.Any {
	exprs := f.toPort(p.Protocol, p.HostPort)
	switch {
	case p.HostIP.IsValid():
		exprs = append(exprs, f.destination(expr.CmpOpEq, p.HostIP)...)
	case f.nfproto == unix.NFPROTO_IPV6:
		exprs = append(exprs, f.destination(expr.CmpOpNeq, netip.IPv6Loopback())...)
	}
	return append(exprs,
		&expr.Immediate{Register: 1, Data: pod.AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, p.ContainerPort)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: 1, RegProtoMin: 2, Specified: true})
}

// statusDNAT is IPS_DST_NAT of the kernel's nf_conntrack_common.h: the destination was translated.
const statusDNAT = 1 << 5

// hairpins returns a rule for each kind of source whose answers would not come back by this host.
func (f family) hairpins(p Mapped, pod netip.Addr, direct *nftables.Set) [][]expr.Any {
	mapped := slices.Concat(f.toPort(p.Protocol, p.ContainerPort), f.destination(expr.CmpOpEq, pod), []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(statusDNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.source, Len: f.address.Bytes},
	})
	rules := [][]expr.Any{append(slices.Clone(mapped), &expr.Lookup{SourceRegister: 1, SetName: direct.Name, SetID: direct.ID}, &expr.Masq{})}
	if f.nfproto == unix.NFPROTO_IPV4 {
		rules = append(rules, append(slices.Clone(mapped),
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{0xff, 0, 0, 0}, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{127, 0, 0, 0}}, &expr.Masq{}))
	}
	return rules
}

// routeLocalnet has the kernel send what comes from 127.0.0.1 to pods; the setting goes with tapyard0.
func routeLocalnet(ports []Mapped) error {
	if !slices.ContainsFunc(ports, func(p Mapped) bool { return len(p.addrs(families[0])) > 0 }) {
		return nil
	}
	err := os.WriteFile(filepath.Join(sysctlDir, "net/ipv4/conf", HostDevice, "route_localnet"), []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("map ports for 127.0.0.1: %w; set it on the host ('sysctl -w net.ipv4.conf.%s.route_localnet=1') or run the agent privileged", err, HostDevice)
	}
	return nil
}

// mapped returns the ports of the node that are to lead to the pod.
func (a Attachment) mapped() (ports []Mapped) {
	for _, p := range a.PortMappings {
		ports = append(ports, Mapped{p, a.Name, a.Addrs()})
	}
	return ports
}

// Mapped returns the ports of the node that lead to pods, in the order in which pods came.
func (m *Manager) Mapped() (ports []Mapped) {
	for _, e := range m.snapshot() {
		if e.mapped {
			ports = append(ports, e.a.mapped()...)
		}
	}
	return ports
}

// mapPorts has the node's ports lead to the pod.
func (t *addition) mapPorts() error {
	if len(t.a.PortMappings) == 0 {
		return nil
	}
	key := t.a.Key()
	if err := t.m.reservePorts(t.a); err != nil {
		return err
	}
	t.onUndo(func() error { return t.m.unmapPorts(key) })
	if err := t.m.at("ADD: set the rules of ports"); err != nil {
		return err
	}
	return t.m.portsChanged(t.a.PortMappings)
}

// reservePorts refuses a port that leads to another pod already.
func (m *Manager) reservePorts(a Attachment) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		for _, theirs := range e.a.PortMappings {
			i := slices.IndexFunc(a.PortMappings, theirs.overlaps)
			if e.mapped && i >= 0 && e.a.Key() != a.Key() {
				return podapi.Errorf(podapi.CodeTryAgain, "map %v: pod %s has %v; want another hostPort or hostIP, or delete that pod", a.PortMappings[i], e.a.Name, theirs)
			}
		}
	}
	e := m.entries[a.Key()]
	e.a, e.mapped = a, true
	return nil
}

// overlaps says whether something may be for both.
func (p PortMapping) overlaps(q PortMapping) bool {
	return p.HostPort == q.HostPort && p.Protocol == q.Protocol && (p.HostIP == q.HostIP || !p.HostIP.IsValid() || !q.HostIP.IsValid())
}

// unmapPorts ends what mapPorts began; twice is once.
func (m *Manager) unmapPorts(key string) error {
	m.mu.Lock()
	e := m.entries[key]
	if e == nil || !e.mapped {
		m.mu.Unlock()
		return nil
	}
	e.mapped = false
	mappings := e.a.PortMappings
	m.mu.Unlock()
	err := m.portsChanged(mappings)
	if err != nil { // for a repeated DEL
		m.mu.Lock()
		e.mapped = true
		m.mu.Unlock()
	}
	return err
}

// portsChanged brings the host's rules to Mapped. UDP that the kernel has translated, or not translated, by the
// rules before goes on as it went for as long as it flows, so it is made to forget that.
func (m *Manager) portsChanged(changed []PortMapping) error {
	if err := m.cfg.MapPorts(); err != nil {
		return err
	}
	for _, p := range changed {
		if p.Protocol == "udp" {
			if err := forgetUDP(p.HostPort); err != nil {
				m.cfg.Log.Warn("senders of UDP may need a pause before they reach the pod", "port", p.String(), "err", err)
			}
		}
	}
	return nil
}

func forgetUDP(port uint16) error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		var f netlink.ConntrackFilter
		if err := errors.Join(f.AddProtocol(unix.IPPROTO_UDP), f.AddPort(netlink.ConntrackOrigDstPort, port)); err != nil {
			return err
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, &f); err != nil {
			return fmt.Errorf("forget connections to UDP port %d: %w", port, err)
		}
	}
	return nil
}
