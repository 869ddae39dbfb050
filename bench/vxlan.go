package bench

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

const (
	overlayVNI = 1
	vxlanPort  = 4789
)

// kernelVXLAN is what Linux does by itself: on each node a bridge between the pod's veth and a vxlan device.
type kernelVXLAN struct{ nodes }

// startVXLAN is the starter of a pair of nodes whose underlay has offloads or not.
func startVXLAN(offloads bool) starter {
	return func(_ context.Context, s *session) (subject, error) {
		v := &kernelVXLAN{newNodes(s, "vxlan")}
		if err := v.start(offloads); err != nil {
			return nil, errors.Join(err, v.close())
		}
		return v, nil
	}
}

func (v *kernelVXLAN) start(offloads bool) error {
	if err := v.join(offloads); err != nil {
		return err
	}
	for i, p := range []*pod{&v.from, &v.to} {
		err := inNetns(v.netns[i], func() error {
			if err := addVethPod(p, "pod"); err != nil {
				return err
			}
			if err := addVXLAN("vxlan", underAddrs[i], underAddrs[1-i]); err != nil {
				return err
			}
			return addBridge("br0", "pod", "vxlan")
		})
		if err != nil {
			return fmt.Errorf("set up %s: %w", v.netns[i], err)
		}
	}
	return acquaint(v.from, v.to)
}

// addVXLAN makes a device with the defaults of ip-link(8): it learns, and sends outer checksums.
func addVXLAN(name, local, remote string) error {
	under, err := netlink.LinkByName(underDevice)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, podMTU
	device := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: overlayVNI, VtepDevIndex: under.Attrs().Index, Port: vxlanPort,
		SrcAddr: net.ParseIP(local), Group: net.ParseIP(remote), Learning: true, UDPCSum: true,
	}
	if err := netlink.LinkAdd(device); err != nil {
		return fmt.Errorf("add the vxlan device: %w", err)
	}
	return raise(name)
}

// addBridge makes a bridge between devices.
func addBridge(name string, devices ...string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, podMTU
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add the bridge: %w", err)
	}
	for _, d := range devices {
		link, err := netlink.LinkByName(d)
		if err == nil {
			err = netlink.LinkSetMaster(link, bridge)
		}
		if err != nil {
			return fmt.Errorf("put %s into the bridge: %w", d, err)
		}
	}
	return raise(name)
}

func (v *kernelVXLAN) pids() []int                           { return nil }
func (v *kernelVXLAN) drops(context.Context) (uint64, error) { return v.deviceDrops() }
