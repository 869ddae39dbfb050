package port

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A device that the switch reads through AF_PACKET is also read by the host's own stack, which would
// answer for the host's addresses there, and forward. An nftables chain at the device's ingress, which
// lies behind the packet sockets (net/core/dev.c, __netif_receive_skb_core), drops all that arrives.

// guardPrefix begins the names of the tables, one per device so that each can go alone.
const guardPrefix = "tapyard-"

// The names of the one chain of a table say whose device it is: a pod's stays closed to the host while no agent
// runs, and an uplink is given back.
const podChain, uplinkChain = "ingress", "uplink"

func guardOf(device string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: GuardName(device)}
}

// GuardName returns the name of the nftables table, of family netdev, that keeps the host off a device.
func GuardName(device string) string { return guardPrefix + device }

// isolate keeps the host's stack off the device, and replaces what a predecessor left there. It outlives us:
// while no agent runs, a pod must not reach the host past the switch.
func isolate(link netlink.Link, uplink bool) error {
	device := link.Attrs().Name
	if !uplink { // an uplink keeps its setting: with all that arrives dropped, the host can use no address there
		if err := disableIPv6(device); err != nil {
			return err
		}
	}
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	// After a transaction the kernel closes the socket only when what was replaced is gone, an RCU grace period or 10 ms later:
	// the guard is there by then, and at a start frames wait.
	defer func() { go c.CloseLasting() }()
	guard, policy, chain := guardOf(device), nftables.ChainPolicyDrop, podChain
	if uplink {
		chain = uplinkChain
	}
	c.AddTable(guard) // so that there is one to delete; the whole batch is one transaction
	c.DelTable(guard)
	c.AddTable(guard)
	c.AddChain(&nftables.Chain{
		Table: guard, Name: chain, Type: nftables.ChainTypeFilter, Device: device, Policy: &policy,
		Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter,
	})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("keep the host's stack off it (nftables table netdev %s; the kernel needs NF_TABLES_NETDEV and NETFILTER_INGRESS): %w", guard.Name, err)
	}
	return nil
}

// disableIPv6 keeps the host from sending router solicitations and reports of its groups into a pod.
func disableIPv6(device string) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
		return fmt.Errorf("disable the host's IPv6: %w", err)
	}
	return nil
}

// release gives the device back to the host's stack. A guard that is gone is no error.
func release(device string) error {
	c, err := nftables.New()
	if err == nil {
		c.DelTable(guardOf(device))
		err = c.Flush()
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("give device %s back to the host ('nft delete table netdev %s'): %w", device, GuardName(device), err)
	}
	return nil
}

// PruneGuards removes the nftables tables that nothing needs any more, in the calling thread's network
// namespace, and returns the names of their devices: those of pods that vanished while no agent ran, and those
// of uplinks whose agent was killed, unless another one has them by now.
func PruneGuards() (pruned []string, err error) {
	guards, err := listGuards()
	if err != nil {
		return nil, err
	}
	var errs []error
	for device, chain := range guards {
		_, err := netlink.LinkByName(device)
		if gone := errors.As(err, &netlink.LinkNotFoundError{}); !gone && (chain != uplinkChain || isClaimed(device)) {
			continue
		}
		if err := release(device); err != nil {
			errs = append(errs, err)
		} else {
			pruned = append(pruned, device)
		}
	}
	slices.Sort(pruned)
	return pruned, errors.Join(errs...)
}

// RestoreGuards guards those of the ports again whose table another program has removed ('nft flush ruleset'
// removes all), and returns the names of their devices.
func RestoreGuards(ports []*Packet) (restored []string, err error) {
	guards, err := listGuards()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range ports {
		if guards[p.cfg.Device] != "" || p.Gone() {
			continue
		}
		link, err := netlink.LinkByIndex(p.index)
		if err == nil {
			err = isolate(link, p.cfg.Uplink)
		}
		switch {
		case err == nil:
			restored = append(restored, p.cfg.Device)
		case !p.Gone(): // not just removed
			errs = append(errs, fmt.Errorf("device %s: %w", p.cfg.Device, err))
		}
	}
	return restored, errors.Join(errs...)
}

// listGuards returns the chain of each device that has a table, or "": the kernel deletes a chain with its device.
func listGuards() (map[string]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("reach nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyNetdev)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a kernel without nftables, or without this family
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	guards := map[string]string{}
	for _, t := range tables {
		if device, ours := strings.CutPrefix(t.Name, guardPrefix); ours {
			guards[device] = ""
		}
	}
	for _, chain := range chains {
		if device, ours := strings.CutPrefix(chain.Table.Name, guardPrefix); ours {
			guards[device] = chain.Name
		}
	}
	return guards, nil
}

// claimName is of an abstract unix socket that the agent with that uplink holds: it lives in the network
// namespace, as the device does, and ends with its process.
func claimName(device string) *net.UnixAddr {
	return &net.UnixAddr{Net: "unixgram", Name: "@tapyard-uplink/" + device}
}

// claim makes the uplink ours. The device itself would have several readers, each of which would give the
// host back what the others still keep from it.
func claim(device string) (*net.UnixConn, error) {
	c, err := net.ListenUnixgram("unixgram", claimName(device))
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, errors.New("it is another agent's uplink, or another network's of this one: stop that agent or choose another device")
	}
	if err != nil {
		return nil, fmt.Errorf("claim it: %w", err)
	}
	return c, nil
}

func isClaimed(device string) bool {
	c, err := net.DialUnix("unixgram", nil, claimName(device))
	if err != nil {
		return !errors.Is(err, unix.ECONNREFUSED) // in doubt it is somebody's
	}
	c.Close()
	return true
}

// usable refuses devices that can't be a port, and as an uplink those that the host uses.
func usable(link netlink.Link, uplink bool) error {
	a := link.Attrs()
	if a.EncapType != "ether" {
		return fmt.Errorf("it is of type %s, not an Ethernet device: choose another device", a.EncapType)
	}
	if !uplink {
		return nil
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list its addresses: %w", err)
	}
	for _, addr := range addrs {
		if addr.IP.To4() != nil || !addr.IP.IsLinkLocalUnicast() {
			return fmt.Errorf("the host has address %s on it and would be cut off: remove the address ('ip address del %s dev %s') or choose another device",
				addr.IPNet, addr.IPNet, a.Name)
		}
	}
	return notStacked(link)
}

// notStacked refuses a device that another one of the host sits on, since all that arrives is taken from it.
func notStacked(link netlink.Link) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	a := link.Attrs()
	for _, l := range links {
		switch other := l.Attrs(); {
		case a.MasterIndex != 0 && other.Index == a.MasterIndex:
			return fmt.Errorf("it belongs to %s: take it out ('ip link set %s nomaster') or choose another device", other.Name, a.Name)
		case other.ParentIndex == a.Index && other.Index != a.Index && l.Type() != "veth":
			return fmt.Errorf("the host's %s device %s sits on it and would be cut off: delete that or choose another device", l.Type(), other.Name)
		}
	}
	return nil
}
