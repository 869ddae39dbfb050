package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

const (
	nebulaDevice = "nebula"
	nebulaPort   = 4242

	// nebulaMTU is the underlay's less IPv4, UDP, nebula's header and the tag of its cipher: 1500-20-8-16-16.
	nebulaMTU = 1440
)

var nebulaAddrs = [2]string{"10.99.0.1", "10.99.0.2"}

// nebula is two nodes joined by nebula, which encrypts, unlike the others. It joins nodes: the kernel routes between
// its TUN and the pod's veth.
type nebula struct {
	nodes
	dir  string
	proc [2]*process
}

// startNebula is the starter of a pair of nodes whose underlay has offloads or not.
func startNebula(offloads bool) starter {
	return func(ctx context.Context, s *session) (subject, error) {
		for _, program := range []string{"nebula", "nebula-cert"} {
			if _, err := exec.LookPath(program); err != nil {
				return nil, &absentError{peer: "nebula", why: "there is no " + program + " in PATH (Debian: apt install nebula)"}
			}
		}
		dir, err := s.folder()
		if err != nil {
			return nil, err
		}
		n := &nebula{nodes: newNodes(s, "nebula"), dir: dir}
		n.to.addr = netip.MustParseAddr("10.244.2.4") // routed: each node has a subnet of its own
		if err := n.start(ctx, offloads); err != nil {
			return nil, errors.Join(err, n.close())
		}
		return n, nil
	}
}

func (n *nebula) start(ctx context.Context, offloads bool) error {
	if err := n.join(offloads); err != nil {
		return err
	}
	if err := n.cert(ctx, "ca", "-name", "bench"); err != nil {
		return err
	}
	pods := [2]*pod{&n.from, &n.to}
	gateways := [2]net.HardwareAddr{}
	for i, p := range pods {
		name := fmt.Sprintf("node-%d", i+1)
		if err := n.cert(ctx, "sign", "-name", name, "-ip", nebulaAddrs[i]+"/24", "-subnets", podSubnet(p)); err != nil {
			return err
		}
		config := n.path(name + ".yml")
		if err := writeJSON(config, n.config(i, name, podSubnet(pods[1-i]))); err != nil {
			return err
		}
		err := inNetns(n.netns[i], func() (err error) {
			gateways[i], err = addRoutedPod(p)
			return err
		})
		if err != nil {
			return fmt.Errorf("set up %s: %w", n.netns[i], err)
		}
		if n.proc[i], err = startProcess("nebula", exec.Command("nebula", "-config", config), n.netns[i], n.cpus[i]); err != nil {
			return err
		}
	}
	n.to.mac, n.from.mac = gateways[0], gateways[1]
	return acquaint(n.from, n.to)
}

func (n *nebula) path(file string) string { return filepath.Join(n.dir, file) }

func (n *nebula) cert(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "nebula-cert", args...)
	cmd.Dir = n.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nebula-cert %s: %w: %s", args[0], err, out)
	}
	return nil
}

// config is nebula's, of node i, with everything allowed and nothing that it needs no more than two nodes for.
func (n *nebula) config(i int, name, otherSubnet string) map[string]any {
	other := nebulaAddrs[1-i]
	anything := []any{map[string]any{"port": "any", "proto": "any", "host": "any"}}
	return map[string]any{
		"pki":             map[string]any{"ca": n.path("ca.crt"), "cert": n.path(name + ".crt"), "key": n.path(name + ".key")},
		"static_host_map": map[string]any{other: []string{fmt.Sprintf("%s:%d", underAddrs[1-i], nebulaPort)}},
		"lighthouse":      map[string]any{"am_lighthouse": false},
		"listen":          map[string]any{"host": underAddrs[i], "port": nebulaPort},
		"tun": map[string]any{"dev": nebulaDevice, "mtu": nebulaMTU, "tx_queue": podQueue,
			"unsafe_routes": []any{map[string]any{"route": otherSubnet, "via": other, "mtu": nebulaMTU}}},
		"firewall": map[string]any{"outbound": anything, "inbound": anything},
		"logging":  map[string]any{"level": "warning", "format": "text"},
	}
}

func podSubnet(p *pod) string {
	return netip.PrefixFrom(p.addr, netip.MustParsePrefix(podPrefix).Bits()).Masked().String()
}

// addRoutedPod joins a pod with the current namespace, which becomes its router, and returns the router's MAC.
func addRoutedPod(p *pod) (net.HardwareAddr, error) {
	if err := addVethPod(p, "pod"); err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName("pod")
	if err != nil {
		return nil, err
	}
	gateway := netip.MustParsePrefix(podSubnet(p)).Addr().Next()
	err = errors.Join(
		netlink.AddrAdd(link, &netlink.Addr{IPNet: prefixNet(gateway)}),
		os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
		inNetns(p.netns, func() error { return routeThrough(gateway) }),
	)
	return link.Attrs().HardwareAddr, err
}

// routeThrough gives a pod its default route, and an MTU that fits nebula's.
func routeThrough(gateway netip.Addr) error {
	link, err := netlink.LinkByName(podDevice)
	if err != nil {
		return err
	}
	return errors.Join(
		netlink.LinkSetMTU(link, nebulaMTU),
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}),
	)
}

func (n *nebula) pids() []int { return []int{n.proc[0].pid(), n.proc[1].pid()} }

// drops are those at the devices, and at the sockets between the nodes.
func (n *nebula) drops(context.Context) (sum uint64, err error) {
	for _, name := range n.netns {
		drops, err := udpDrops(name)
		if err != nil {
			return 0, err
		}
		sum += drops
	}
	devices, err := n.deviceDrops()
	return sum + devices, err
}

// udpDrops adds up what UDP sockets over IPv4 of a namespace have dropped: the last column of proc(5)'s net/udp.
func udpDrops(netnsName string) (sum uint64, err error) {
	err = inNetns(netnsName, func() error {
		text, err := os.ReadFile("/proc/thread-self/net/udp")
		if err != nil {
			return err
		}
		_, sockets, _ := strings.Cut(string(text), "\n") // after the headings
		for line := range strings.Lines(sockets) {
			fields := strings.Fields(line)
			drops, err := strconv.ParseUint(fields[len(fields)-1], 10, 64)
			if err != nil {
				return fmt.Errorf("read drops of %s in net/udp: %w", netnsName, err)
			}
			sum += drops
		}
		return nil
	})
	return sum, err
}

func (n *nebula) close() error {
	for _, p := range n.proc {
		if p != nil {
			p.kill()
		}
	}
	return n.nodes.close()
}
