package port

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
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

func guardOf(device string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: guardPrefix + device}
}

// isolate keeps the host's stack off the device, and replaces what a predecessor left there. It outlives us:
// while no agent runs, a pod must not reach the host past the switch.
func isolate(link netlink.Link, uplink bool) error {
	device := link.Attrs().Name
	if !uplink { // an uplink keeps its setting: with all that arrives dropped, the host can use no address there
		if err := disableIPv6(device); err != nil {
			return err
		}
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	guard, policy := guardOf(device), nftables.ChainPolicyDrop
	c.AddTable(guard) // so that there is one to delete; the whole batch is one transaction
	c.DelTable(guard)
	c.AddTable(guard)
	c.AddChain(&nftables.Chain{
		Table: guard, Name: "ingress", Type: nftables.ChainTypeFilter, Device: device, Policy: &policy,
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
		return fmt.Errorf("give device %s back to the host ('nft delete table netdev %s%s'): %w", device, guardPrefix, device, err)
	}
	return nil
}

// PruneGuards removes the nftables tables of devices that are no longer in the calling thread's network
// namespace: those of pods that vanished while no agent ran.
func PruneGuards() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return fmt.Errorf("list nftables tables: %w", err)
	}
	var errs []error
	for _, t := range tables {
		device, ours := strings.CutPrefix(t.Name, guardPrefix)
		if !ours {
			continue
		}
		if _, err := netlink.LinkByName(device); errors.As(err, &netlink.LinkNotFoundError{}) {
			errs = append(errs, release(device))
		}
	}
	return errors.Join(errs...)
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
