package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The two nodes' ends of the veth pair that joins them, and the pair's MTU, Ethernet's.
const (
	underDevice = "under"
	underMTU    = 1500
	underBits   = 24
)

var underAddrs = [2]string{"192.168.1.11", "192.168.1.12"}

// nodes are two nodes joined by one veth pair, each with a pod. They are for embedding in a subject.
//
// A node has half of the machine's CPUs: its switch and its pod's processes run on them, whatever the subject. So a
// sender and its switch share their time, as they do on a node, and the other node's are never in their way. What the
// kernel forwards it does in the sender's system calls, on the sender's CPUs as far as the receiver's socket: a veth
// has no interrupts that another CPU could take.
type nodes struct {
	kind     string    // the subject's name
	netns    [2]string // of the nodes
	cpus     [2]unix.CPUSet
	from, to pod // on the first node and on the second
}

func newNodes(s *session, kind string) nodes {
	prefix := benchPrefix + kind
	return nodes{
		kind:  kind,
		netns: [2]string{prefix + "-1", prefix + "-2"},
		cpus:  [2]unix.CPUSet{s.load, s.forward},
		from:  pod{netns: prefix + "-pod-1", cpus: s.load, addr: netip.MustParseAddr("10.244.1.3")},
		to:    pod{netns: prefix + "-pod-2", cpus: s.forward, addr: netip.MustParseAddr("10.244.1.4")},
	}
}

func (n *nodes) name() string         { return n.kind }
func (n *nodes) pods() (from, to pod) { return n.from, n.to }

// close removes the namespaces, and all that is in them.
func (n *nodes) close() error {
	return deleteNetns(n.from.netns, n.to.netns, n.netns[0], n.netns[1])
}

// join makes the nodes. Without offloads their pair behaves as a NIC that has none: the sender segments every
// super-frame, and sums it. With them a datagram of 64 KiB crosses whole.
func (n *nodes) join(offloads bool) error {
	for _, name := range n.netns {
		if err := makeNetns(name); err != nil {
			return err
		}
	}
	if err := inNetns(n.netns[0], func() error { return addVeth(underDevice, n.netns[1], underDevice, underMTU) }); err != nil {
		return err
	}
	for i, name := range n.netns {
		if err := inNetns(name, func() error { return setUpUnderlay(underAddrs[i], offloads) }); err != nil {
			return fmt.Errorf("set up %s of %s: %w", underDevice, name, err)
		}
	}
	return nil
}

func setUpUnderlay(addr string, offloads bool) error {
	if !offloads {
		if err := switchOffloadsOff(underDevice); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName(underDevice)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, underAddr(addr)), netlink.LinkSetUp(link))
}

func underAddr(addr string) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(addr).To4(), Mask: net.CIDRMask(underBits, 32)}}
}

// addVeth makes a veth pair between the current namespace and another; the end here is up.
func addVeth(name, otherNetns, otherName string, mtu int) error {
	other, err := netns.GetFromName(otherNetns)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", otherNetns, err)
	}
	defer other.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: otherName, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(other)}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add the veth pair %s and %s of %s: %w", name, otherName, otherNetns, err)
	}
	return raise(name)
}

// addVethPod makes a pod that is joined with the current namespace by a veth pair, its end here called device.
func addVethPod(p *pod, device string) error {
	if err := makeNetns(p.netns); err != nil {
		return err
	}
	if err := addVeth(device, p.netns, podDevice, podMTU); err != nil {
		return err
	}
	return p.setUp()
}

// switchOffloadsOff does what `ethtool -K DEVICE tx off gso off tso off` does. Without checksums there is no
// segmentation of UDP either (netdev_fix_features in the kernel's net/core/dev.c).
func switchOffloadsOff(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, cmd := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_STXCSUM} {
		value := struct{ cmd, data uint32 }{cmd, 0} // struct ethtool_value
		request := struct {                         // struct ifreq
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(request.name[:], device)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("switch offload %#x of %s off: %w", cmd, device, errno)
		}
	}
	return nil
}

// deviceDrops adds up what the kernel dropped at all devices of a namespace.
func deviceDrops(netnsName string) (sum uint64, err error) {
	err = inNetns(netnsName, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list the devices of %s: %w", netnsName, err)
		}
		for _, link := range links {
			st := link.Attrs().Statistics
			sum += st.TxDropped + st.TxErrors + st.RxErrors // what a veth's other end could not take is TxDropped here
			if link.Type() != "veth" {
				sum += st.RxDropped
			}
		}
		return nil
	})
	return sum, err
}

// deviceDrops are those of both nodes.
func (n *nodes) deviceDrops() (sum uint64, err error) {
	for _, name := range n.netns {
		drops, err := deviceDrops(name)
		if err != nil {
			return 0, err
		}
		sum += drops
	}
	return sum, nil
}
