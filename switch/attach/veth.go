package attach

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// A veth pair is made with one end in the agent's namespace and the other in the pod's. Each end goes with the other,
// so that whoever deletes one, a pod's namespace or a DEL, deletes both.

// hostIfName is the name of the agent's end, which is never that of a pod's device: runtimes tell interfaces
// apart by bare name. 48 bits of hash: of 1,000 pods two share one with a probability of 2e-9, and the second
// ADD fails.
func hostIfName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "ty" + hex.EncodeToString(sum[:6])
}

// HostIfName returns the name of the agent's end of the attachment's veth pair.
func (a Attachment) HostIfName() string { return hostIfName(a.Key()) }

// hostMAC is the agent's end's, which nobody sends to.
func (a Attachment) hostMAC() wire.MAC {
	return wire.MAC{0x0e, a.MAC[1], a.MAC[2], a.MAC[3], a.MAC[4], a.MAC[5]}
}

// createPair makes the pair with the agent's end under a temporary name, by which the next start finds what a
// kill leaves, until it has its alias. A pair of that key is such a leftover: there is no record of it.
func createPair(tmp string, a Attachment, netns int, alias string) error {
	if err := removePair(a.Key()); err != nil {
		return err
	}
	host, mac, podMAC := a.HostIfName(), a.hostMAC(), a.MAC
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: tmp, MTU: a.MTU, TxQLen: txQueueLen, HardwareAddr: net.HardwareAddr(mac[:])},
		PeerName:  a.IfName, PeerNamespace: netlink.NsFd(netns), PeerHardwareAddr: net.HardwareAddr(podMAC[:]),
		PeerMTU: uint32(a.MTU), PeerTxQLen: txQueueLen,
	}
	if err := netlink.LinkAdd(veth); errors.Is(err, unix.EEXIST) {
		return port.ErrDeviceExists
	} else if err != nil {
		return fmt.Errorf("create veth pair %s with MTU %d (does the kernel have veth?): %w", host, a.MTU, err)
	}
	err := netlink.LinkSetAlias(veth, alias)
	if err != nil {
		err = fmt.Errorf("set the alias of %s: %w", host, err)
	} else if err = netlink.LinkSetName(veth, host); err != nil {
		err = fmt.Errorf("rename a device to %s: %w", host, err)
	}
	if err != nil {
		return errors.Join(err, netlink.LinkDel(veth))
	}
	return nil
}

// hostEnd finds the agent's end of an attachment's pair, which is nil if it isn't there.
func hostEnd(key string) (netlink.Link, error) {
	link, err := netlink.LinkByName(hostIfName(key))
	if isNoLink(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", hostIfName(key), err)
	}
	if !isAliasOf(link.Attrs().Alias, key) {
		return nil, nil
	}
	return link, nil
}

// reopenPair opens the agent's end of a recorded attachment's pair.
func (m *Manager) reopenPair(a Attachment) (device, error) {
	link, err := hostEnd(a.Key())
	if err != nil {
		return nil, err
	}
	if link == nil {
		return nil, fmt.Errorf("device %s, the other end of the pod's %s, is not in the agent's network namespace: does the agent run in another one than before?",
			a.HostIfName(), a.IfName)
	}
	return m.openDevice(link.Attrs().Name, a)
}

// removePair deletes what is left of an attachment's pair, of which nobody else may know: a kill may have
// come before the record, or after the device.
func removePair(key string) error {
	link, err := hostEnd(key)
	if link == nil || err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove %s: %w", link.Attrs().Name, err)
	}
	return pruneGuards()
}

// pruneGuards removes the nftables tables of pairs that are gone.
func pruneGuards() error {
	_, err := port.PruneGuards()
	return err
}
