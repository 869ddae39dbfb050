package bench

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The network that each subject's two pods are in, and their devices' settings, alike for all.
const (
	podDevice = "eth0"
	podPrefix = "10.244.1.0/24"

	// podMTU is what a pod has in a cluster over Ethernet: 1500 less VXLAN's 50 over IPv4.
	podMTU = 1450

	// podQueue is the TAP's ring in frames, the switch's own choice.
	podQueue = 1000
)

// subject is something that forwards between two pods.
type subject interface {
	// name is the word for it in the rows of a report.
	name() string
	// pods returns the pod that sends and the one that receives.
	pods() (from, to pod)
	// pids are the processes that forward; the kernel is none.
	pids() []int
	// drops returns how many frames, as on the wire, the subject itself has dropped so far.
	drops(ctx context.Context) (uint64, error)
	// close ends the subject and removes its namespaces; it reports what the subject found wrong.
	close() error
}

// preparer is a subject that has something to do before each run of frames.
type preparer interface {
	prepareRun(ctx context.Context, s *session) error
}

// pod is one end of a measurement.
type pod struct {
	netns string // name of its namespace
	addr  netip.Addr
	mac   net.HardwareAddr // that frames of the other end are addressed to
	cpus  unix.CPUSet      // that what makes or swallows its traffic runs on
}

// podPair names two pods of a node that has no plugin to give them addresses.
func podPair(s *session, kind string) (from, to pod) {
	from = pod{netns: benchPrefix + kind + "-a", cpus: s.load, addr: netip.MustParseAddr("10.244.1.3")}
	to = pod{netns: benchPrefix + kind + "-b", cpus: s.load, addr: netip.MustParseAddr("10.244.1.4")}
	return from, to
}

// kernelDrops returns what the kernel dropped at the pod's device so far.
func (p pod) kernelDrops() (dropCounters, error) { return readDropCounters(p.netns, podDevice) }

// readMAC fills in the address of the pod's device.
func (p *pod) readMAC() error {
	return inNetns(p.netns, func() error {
		link, err := netlink.LinkByName(podDevice)
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", podDevice, p.netns, err)
		}
		p.mac = link.Attrs().HardwareAddr
		return nil
	})
}
