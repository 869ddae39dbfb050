package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tapyard/bench/nstest"
)

// volume is the least length of a TCP stream.
const volume = 1 << 20

// TestInteropRouted joins Tapyard with nodes whose overlay is somebody else's VXLAN, routed: pods of one
// node reach those of the other in both families.
func TestInteropRouted(t *testing.T) {
	c := build(t)
	for _, k := range []struct {
		name     string
		family   int // of the tunnels
		offloads bool
		options  string // of the foreign vxlan device
		long     bool   // left out by -short
	}{
		{"IPv4", 4, false, "udpcsum", true},
		{"IPv4 with offloads", 4, true, "udpcsum", false},
		{"IPv4 without checksums", 4, false, "noudpcsum", false}, // ip-link(8)'s default, and flannel's
		{"IPv4 with offloads, without checksums", 4, true, "noudpcsum", true},
		{"IPv6", 6, false, "", false},
		{"IPv6 with offloads", 6, true, "", true},
		{"IPv6 without checksums", 6, false, "udp6zerocsumtx udp6zerocsumrx", true}, // RFC 6935
		{"IPv6 with offloads, without checksums", 6, true, "udp6zerocsumtx udp6zerocsumrx", true},
	} {
		if k.long && testing.Short() {
			continue
		}
		t.Run("kernel over "+k.name, func(t *testing.T) {
			u := newUnderlay(t, k.family, k.offloads)
			pod := startNode(t, c, u).attach("pod", nil)
			kernelVXLAN(t, u, 1, "nolearning "+k.options)
			exchange(t, pod, routedPlace(t, u.foreign, "vx"), u.mtu, volume)
		})
	}
	for _, k := range []struct {
		name   string
		family int
		long   bool
	}{{"IPv4", 4, false}, {"IPv6", 6, true}} {
		if k.long && testing.Short() {
			continue
		}
		// Only without offloads: this Open vSwitch can't take what a veth with offloads delivers, super-frames
		// and datagrams that nobody has summed. Between two machines there is none of that.
		t.Run("Open vSwitch over "+k.name, func(t *testing.T) {
			u := newUnderlay(t, k.family, false)
			pod := startNode(t, c, u).attach("pod", nil)
			ovs := startOVS(t, u.foreign)
			ovs.bridges(u, 1)
			exchange(t, pod, routedPlace(t, ovs.pod("fpod", u.mtu), "eth0"), u.mtu, volume)
		})
	}
}

var blue = map[string]string{"network": "blue"}

// TestInteropStretched is one L2 segment with such nodes: what nobody has learned, and what is for all,
// reaches them, and MACs are learned out of the tunnel.
func TestInteropStretched(t *testing.T) {
	c := build(t)
	kernel := func(t *testing.T, u *underlay) *nstest.NS {
		kernelVXLAN(t, u, blueVNI, "")
		return bridged(t, u)
	}
	ovs := func(t *testing.T, u *underlay) *nstest.NS {
		o := startOVS(t, u.foreign)
		o.bridges(u, blueVNI)
		return o.pod("fpod", u.mtu)
	}
	for _, k := range []struct {
		name     string
		family   int // of the tunnels
		offloads bool
		join     func(*testing.T, *underlay) *nstest.NS
		long     bool // left out by -short
	}{
		{"kernel over IPv4", 4, false, kernel, false},
		{"kernel over IPv4 with offloads", 4, true, kernel, true},
		{"kernel over IPv6", 6, false, kernel, true},
		{"kernel over IPv6 with offloads", 6, true, kernel, true},
		{"Open vSwitch over IPv4", 4, false, ovs, true},
		{"Open vSwitch over IPv6", 6, false, ovs, true},
	} {
		if k.long && testing.Short() {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			u := newUnderlay(t, k.family, k.offloads)
			n := startNode(t, c, u)
			pod, foreign := n.attach("pod", blue), stretchedPlace(t, "foreign", k.join(t, u), 200)
			exchange(t, pod, foreign, u.mtu, volume)
			n.learned(foreign)
			for _, ends := range [][2]place{{pod, foreign}, {foreign, pod}} {
				tellAll(t, ends[0], ends[1])
			}
		})
	}
	t.Run("a frame from one peer goes to no other", func(t *testing.T) { splitHorizon(t, c) })
}

// learned waits until the agent has the place's MAC behind the tunnel.
func (n *tapyardNode) learned(p place) {
	n.t.Helper()
	mac := p.eth0(n.t).HardwareAddr.String()
	eventually(n.t, p.name+"'s MAC is learned", func() bool {
		return slices.ContainsFunc(strings.Split(n.must("show", "fdb", "--socket", n.path("admin.sock")), "\n"), func(line string) bool {
			return strings.Contains(line, mac) && strings.Contains(line, "vxlan") && strings.HasPrefix(line, fmt.Sprint(blueVNI))
		})
	})
}

// eth0 is the place's device.
func (p place) eth0(t *testing.T) (dev *net.Interface) {
	t.Helper()
	err := within(t, p.ns, func() (err error) {
		dev, err = net.InterfaceByName("eth0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// tellAll sends to all of the segment, by broadcast and to IPv6's all nodes, and waits for it at each place.
func tellAll(t *testing.T, from place, places ...place) {
	t.Helper()
	// The index, since net remembers those of names, of whatever namespace it saw them in.
	zone := strconv.Itoa(from.eth0(t).Index)
	for network, all := range map[string]*net.UDPAddr{
		"udp4": {IP: net.IPv4(10, 50, 0, 255), Port: 7},
		"udp6": {IP: net.IPv6linklocalallnodes, Port: 7, Zone: zone},
	} {
		var listeners []*net.UDPConn
		for _, p := range places {
			listeners = append(listeners, p.listen(t, network, all.Port))
		}
		payload := []byte("from " + from.name)
		err := within(t, from.ns, func() error {
			conn, err := net.DialUDP(network, nil, all)
			if err != nil {
				return err
			}
			_, err = conn.Write(payload)
			return errors.Join(err, conn.Close())
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range listeners {
			_ = l.SetDeadline(time.Now().Add(trafficPatience))
			if err := expectDatagram(l, payload); err != nil {
				t.Errorf("%s to %s, at %s: %v", from.name, all, places[i].name, err)
			}
			l.Close()
		}
	}
}

func (p place) listen(t *testing.T, network string, port int) (l *net.UDPConn) {
	t.Helper()
	err := within(t, p.ns, func() (err error) {
		l, err = net.ListenUDP(network, &net.UDPAddr{Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// splitHorizon joins two foreign nodes that don't know each other.
func splitHorizon(t *testing.T, c *cli) {
	u := newUnderlay(t, 4, false)
	u3 := u.third(t)
	n := startNode(t, c, u, u3)
	pod := n.attach("pod", blue)
	kernelVXLAN(t, u, blueVNI, "")
	kernelVXLAN(t, u3, blueVNI, "")
	foreign, third := stretchedPlace(t, "foreign", bridged(t, u), 200), stretchedPlace(t, "third", bridged(t, u3), 201)
	exchange(t, pod, foreign, u.mtu, volume)
	exchange(t, pod, third, u.mtu, volume)
	n.learned(foreign)
	n.learned(third)

	seen := startCapture(t, u3.foreign, "vx", 1)
	tellAll(t, foreign, pod)
	exchange(t, pod, foreign, u.mtu, volume)
	tellAll(t, pod, foreign, third) // behind all that
	mac, wanted := foreign.eth0(t).HardwareAddr, 0
	for _, p := range seen.packets() {
		if slices.Equal(p[:6], mac) || slices.Equal(p[6:12], mac) {
			t.Errorf("a frame between %s and others reached %s: % x", foreign.name, third.name, p[:min(64, len(p))])
		}
		if slices.Equal(p[6:12], pod.eth0(t).HardwareAddr) {
			wanted++
		}
	}
	if wanted < 2 { // a broadcast and a multicast
		t.Errorf("the capture holds %d frames from the pod", wanted)
	}
}
