package attach

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What pods send beyond the cluster is masqueraded: it leaves with the address of the node's interface,
// since nobody out there has a route to a pod. As `nft list table inet tapyard` has it, for each family in
// which the node has pods:
//
//	set pods4   { type ipv4_addr; flags interval; elements = { 10.244.1.0/24 } }
//	set direct4 { type ipv4_addr; flags interval; elements = { 10.244.0.0/16, 192.168.1.11, 192.168.1.12, 224.0.0.0/4 } }
//	chain forward {
//		type filter hook forward priority filter; policy accept;
//		ip saddr @pods4 udp dport 4789 counter packets 0 bytes 0 drop
//	}
//	chain postrouting {
//		type nat hook postrouting priority srcnat; policy accept;
//		ip saddr @pods4 ip daddr != @direct4 oifname != "tapyard0" masquerade fully-random
//	}
//
// The first rule is because of the second: a pod's datagram to the tunnel port of a node that isn't among our
// peers, say of another cluster, would arrive there with this node's address, which that node may know as a
// peer's; it would take what the pod wrote for a frame from our overlay. NAT looks at the first packet of a
// connection only, this rule at each; fragments are whole again by then, since NAT has them reassembled.
//
// Only packets that the kernel routes come by here: from a pod to this node is delivered locally, to a pod or
// another node it goes through the switch's tunnel, and the tunnel's own datagrams are output, not forwarded.

// egressTable is the node's only nftables table of ours; nothing in it outlives a SetEgress.
var egressTable = &nftables.Table{Name: "tapyard", Family: nftables.TableFamilyINet}

// Its chains have a rule for each family.
var (
	forwardChain = &nftables.Chain{Name: "forward", Table: egressTable, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter}
	postroutingChain = &nftables.Chain{Name: "postrouting", Table: egressTable, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}
	egressChains = []*nftables.Chain{forwardChain, postroutingChain}
)

// egressComment greets whoever lists the table; tables themselves can't be commented through this library.
const egressComment = "managed by tapyard; changes are overwritten"

// EgressConfig says what is masqueraded, and what is dropped lest it be.
type EgressConfig struct {
	PodSubnets   []netip.Prefix // this node's: the sources. A family without one has no rule
	ClusterCIDRs []netip.Prefix // all pods: never masqueraded towards them
	Nodes        []netip.Addr   // underlay addresses of this node and of all peers: neither towards them
	TunnelPort   uint16         // UDP port of the nodes' tunnels, 1 to 65535: what pods send to it is dropped
	Ports        []Mapped       // the node's ports that lead to pods
	PortsOnly    bool           // nothing is masqueraded but what ports need
}

// needed says whether there is anything to have a table for.
func (cfg *EgressConfig) needed() bool { return !cfg.PortsOnly || len(cfg.Ports) > 0 }

// SetEgress makes the nftables table `inet tapyard` what the configuration asks for, in one transaction and
// whatever it was before. Connections that are established keep their translation; other tables are not
// touched. The drops counted so far are lost. It acts in the network namespace of the calling thread.
func SetEgress(cfg EgressConfig) error {
	if !cfg.needed() {
		return RemoveEgress()
	}
	conn, err := nftables.New(nftables.WithSockOptions(roomForPeers))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if err := probe(conn); err != nil {
		return fmt.Errorf("set nftables table inet %s: %w", egressTable.Name, explain(err))
	}
	// Deleting what may not be there is an error, and emptying the table would keep chains and sets of
	// another type.
	conn.AddTable(egressTable)
	conn.DelTable(egressTable)
	conn.AddTable(egressTable)
	for _, c := range cfg.chains() {
		conn.AddChain(c)
	}
	direct := map[byte]*nftables.Set{}
	for _, f := range families {
		if direct[f.nfproto], err = f.add(conn, cfg); err != nil {
			return fmt.Errorf("set nftables table inet %s: %w", egressTable.Name, err)
		}
	}
	if len(cfg.Ports) > 0 {
		addPorts(conn, cfg.Ports, direct)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set nftables table inet %s: %w", egressTable.Name, explain(err))
	}
	return routeLocalnet(cfg.Ports)
}

// chains returns those that the configuration needs.
func (cfg *EgressConfig) chains() (chains []*nftables.Chain) {
	if !cfg.PortsOnly {
		chains = egressChains
	}
	if len(cfg.Ports) > 0 {
		chains = slices.Concat(chains, mappingChains)
	}
	return chains
}

// RestoreEgress is a SetEgress in case another program has removed the table, one of its chains or rules: 'nft
// flush ruleset', with which other programs load theirs, removes everybody's. It says whether that was so.
func RestoreEgress(cfg EgressConfig) (restored bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	want := mappingRules(cfg.Ports)
	for _, f := range families {
		for _, c := range egressChains {
			want[c.Name] += min(1, len(f.of(cfg.PodSubnets)))
		}
	}
	for _, c := range cfg.chains() {
		rules, err := conn.GetRules(egressTable, c) // of a chain that isn't there: none
		if err != nil {
			return false, fmt.Errorf("list nftables table inet %s: %w", egressTable.Name, err)
		}
		if len(rules) != want[c.Name] {
			return true, SetEgress(cfg)
		}
	}
	return false, nil
}

// roomForPeers lets a transaction be one message to the kernel, as it must be: a peer with an address of
// each family takes 40 + 64 bytes, so that 4 MiB are 40,000 peers. The memory is taken while sending only.
func roomForPeers(c *netlink.Conn) error { return c.SetWriteBuffer(4 << 20) }

// RemoveEgress removes the table; that there is none is no error. Connections from pods beyond the cluster
// break, unless another table keeps the kernel's connection tracking at work.
func RemoveEgress() error {
	_, err := removeEgress()
	return err
}

func removeEgress() (removed bool, err error) {
	conn, err := nftables.New()
	if err == nil {
		err = probe(conn)
	}
	if errors.Is(err, errNoNAT) {
		return false, nil // nor a table
	}
	if err == nil {
		conn.DelTable(egressTable)
		err = conn.Flush()
	}
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove nftables table inet %s: %w", egressTable.Name, explain(err))
	}
	return true, nil
}

// errNoNAT is the kernel's, which may have been built without.
var errNoNAT = errors.New("this kernel has no nftables NAT (since Linux 5.2: CONFIG_NF_TABLES_INET, NFT_NAT, NFT_MASQ; NFT_COUNTER until 5.16): " +
	"load the modules nft_chain_nat and nft_masq, or set 'masquerade: false' and have somebody else translate what pods send beyond the cluster")

// probe asks for the table because a batch for a kernel without nf_tables is answered by fewer messages
// than Flush waits for.
func probe(conn *nftables.Conn) error {
	_, err := conn.ListTableOfFamily(egressTable.Name, egressTable.Family)
	if errors.Is(err, unix.ENOENT) {
		return nil // no such table yet
	}
	if errors.Is(err, unix.EINVAL) { // nfnetlink_rcv_msg: no such subsystem
		return fmt.Errorf("%w: %w", errNoNAT, err)
	}
	return err
}

// explain tells a kernel that lacks something from one that refuses. Whatever a transaction refers to, it
// made before: what does not exist then is a type of chain, set or expression.
func explain(err error) error {
	if errors.Is(err, errNoNAT) {
		return err
	}
	for _, lack := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, lack) {
			return fmt.Errorf("%w: %w", errNoNAT, err)
		}
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: it needs CAP_NET_ADMIN, and a table that no other program owns", err)
	}
	return err
}

// family is what differs between the rules for IPv4 and IPv6.
type family struct {
	suffix    string // of the sets' names
	nfproto   byte
	address   nftables.SetDatatype
	source    uint32       // offset of the header's source address; the destination follows it
	multicast netip.Prefix // routers copy it, and no answer comes back to translate (flannel and kube-proxy agree)
}

var families = []family{
	{"4", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 12, netip.MustParsePrefix("224.0.0.0/4")},
	{"6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 8, netip.MustParsePrefix("ff00::/8")},
}

// of returns the prefixes of the family.
func (f family) of(prefixes []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return p.Addr().Is4() != f.multicast.Addr().Is4() })
}

// directSet is the name of the set of those who are reached without masquerading, with the family's suffix.
const directSet = "direct"

// add appends the family's sets and rules to the transaction.
func (f family) add(conn *nftables.Conn, cfg EgressConfig) (kept *nftables.Set, err error) {
	subnets := f.of(cfg.PodSubnets)
	if len(subnets) == 0 {
		return nil, nil
	}
	direct := slices.Concat(subnets, f.of(cfg.ClusterCIDRs), []netip.Prefix{f.multicast})
	for _, a := range cfg.Nodes {
		direct = append(direct, netip.PrefixFrom(a, a.BitLen()))
	}
	var pods *nftables.Set
	if !cfg.PortsOnly {
		if pods, err = f.addSet(conn, "pods", "pod subnets of this node; "+egressComment, subnets); err != nil {
			return nil, err
		}
	}
	kept, err = f.addSet(conn, directSet, "pods, nodes and multicast: reached without masquerading", f.of(direct))
	if err != nil || cfg.PortsOnly {
		return kept, err
	}
	addRule(conn, forwardChain, f.dropTunnels(pods, cfg.TunnelPort))
	addRule(conn, postroutingChain, f.masquerade(pods, kept))
	return kept, nil
}

func addRule(conn *nftables.Conn, chain *nftables.Chain, exprs []expr.Any) {
	conn.AddRule(&nftables.Rule{Table: egressTable, Chain: chain, Exprs: exprs,
		UserData: userdata.AppendString(nil, userdata.TypeComment, egressComment)})
}

// setChunk is how many prefixes go into one message: the kernel's attributes have 16-bit lengths, and a
// prefix of IPv6 takes 64 bytes.
const setChunk = 512

func (f family) addSet(conn *nftables.Conn, name, comment string, prefixes []netip.Prefix) (*nftables.Set, error) {
	s := &nftables.Set{Table: egressTable, Name: name + f.suffix, KeyType: f.address, Interval: true, Comment: comment}
	if err := conn.AddSet(s, nil); err != nil {
		return nil, fmt.Errorf("set %s: %w", s.Name, err)
	}
	for chunk := range slices.Chunk(disjoint(prefixes), setChunk) {
		if err := conn.SetAddElements(s, intervals(chunk)); err != nil {
			return nil, fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	return s, nil
}

// disjoint sorts the prefixes and leaves out those that another one covers, as an interval set wants them.
func disjoint(prefixes []netip.Prefix) (out []netip.Prefix) {
	byFirst := func(x, y netip.Prefix) int {
		return cmp.Or(x.Masked().Addr().Compare(y.Masked().Addr()), cmp.Compare(x.Bits(), y.Bits()))
	}
	for _, p := range slices.SortedFunc(slices.Values(prefixes), byFirst) {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// intervals gives each prefix as its first address and the one behind its last, which the last prefix of
// all has not.
func intervals(prefixes []netip.Prefix) (out []nftables.SetElement) {
	for _, p := range prefixes {
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := behind(p); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// behind returns the first address after the prefix; it is invalid if there is none.
func behind(p netip.Prefix) netip.Addr {
	last := p.Addr().AsSlice()
	for bit := p.Bits(); bit < p.Addr().BitLen(); bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(last)
	return a.Next()
}

// fromPods matches the family's packets with a pod's source address, or the gateway's.
func (f family) fromPods(pods *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nfproto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.source, Len: f.address.Bytes},
		&expr.Lookup{SourceRegister: 1, SetName: pods.Name, SetID: pods.ID},
	}
}

// dropTunnels matches what would pass for a tunnel's datagram once it's masqueraded. It drops instead of
// rejecting, as tunnels do with what comes from a stranger.
func (f family) dropTunnels(pods *nftables.Set, port uint16) []expr.Any {
	return append(f.fromPods(pods),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, // behind IPv6's extension headers, too
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
}

// masquerade matches what comes from pods, or from the gateway address, and leaves the cluster. The port is
// random: by default the kernel keeps it, or takes the next that no entry has yet, so that two pods which
// ask the same server at the same moment are given one port, and the packet whose entry comes second is
// dropped (insert_failed in /proc/net/stat/nf_conntrack).
func (f family) masquerade(pods, direct *nftables.Set) []expr.Any {
	length := f.address.Bytes
	return append(f.fromPods(pods),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.source + length, Len: length},
		&expr.Lookup{SourceRegister: 1, SetName: direct.Name, SetID: direct.ID, Invert: true},
		// By name: the device may be made anew, with another index.
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: hostDeviceName()},
		&expr.Masq{FullyRandom: true},
	)
}

// hostDeviceName is tapyard0 as the kernel compares it, in a field of IFNAMSIZ.
func hostDeviceName() []byte {
	return append([]byte(HostDevice), make([]byte, unix.IFNAMSIZ-len(HostDevice))...)
}
