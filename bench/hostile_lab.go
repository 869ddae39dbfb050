package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/observe"
	"tapyard/switch/port"
)

// hostileLab is the switch with four pods: from and to have a stream, asker asks, attacker attacks.
type hostileLab struct {
	*agent
	attacker, asker pod
	ports           map[string]observe.Port // by MAC
	gateway         station
	void            *port.TAP // voidDevice's descriptor, which is never read
}

// startHostileLab starts the switch with its pods; closing the session ends it.
func (s *session) startHostileLab(ctx context.Context) (lab *hostileLab, err error) {
	// Nobody is kept off anybody's cores: on a node with a hostile pod there is no half that it can't reach, and
	// a switch that is busy with it is to take the time from the neighbours, where it shows.
	if err := unix.SchedGetaffinity(0, &s.load); err != nil {
		return nil, fmt.Errorf("read CPU affinity: %w", err)
	}
	s.forward = s.load
	if lab, err = startHostile(ctx, s); err == nil {
		s.subjects = append(s.subjects, lab)
	}
	return lab, err
}

func startHostile(ctx context.Context, s *session) (*hostileLab, error) {
	a, err := newAgent(s)
	if err != nil {
		return nil, err
	}
	l := &hostileLab{agent: a, attacker: pod{netns: benchPrefix + "pod-h"}, asker: pod{netns: benchPrefix + "pod-c"}}
	l.subnets = append(l.subnets, hostilePrefix6)
	if err := l.start(ctx, s); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *hostileLab) start(ctx context.Context, s *session) error {
	if err := l.agent.start(ctx, s); err != nil {
		return err
	}
	for _, p := range []*pod{&l.attacker, &l.asker} {
		if err := l.attach(ctx, p); err != nil {
			return err
		}
	}
	if err := inNetns(l.attacker.netns, l.openVoid); err != nil {
		return err
	}
	var err error
	if l.ports, err = l.readPorts(ctx); err != nil {
		return err
	}
	var neighbors []observe.Neighbor
	if err := l.client().Get(ctx, "neighbors", &neighbors); err != nil {
		return err
	}
	l.gateway = station{IP4: netip.MustParsePrefix(podPrefix).Addr().Next(), IP6: netip.MustParsePrefix(hostilePrefix6).Addr().Next()}
	for _, n := range neighbors {
		if n.Address == l.gateway.IP4 {
			l.gateway.MAC = n.MAC
		}
	}
	return nil
}

// openVoid makes the device that nobody reads, with a pod's ring and offloads.
func (l *hostileLab) openVoid() (err error) {
	if err = port.CreateTAP(voidDevice); err != nil {
		return err
	}
	if l.void, err = port.OpenTAP(port.TAPConfig{Device: voidDevice, PortName: voidDevice}); err != nil {
		return err
	}
	link, err := netlink.LinkByName(voidDevice)
	if err == nil {
		err = errors.Join(netlink.LinkSetTxQLen(link, podQueue), netlink.LinkSetMTU(link, podMTU), netlink.LinkSetUp(link))
	}
	if err != nil {
		return fmt.Errorf("set up %s: %w", voidDevice, err)
	}
	return nil
}

func (l *hostileLab) client() observe.Client { return observe.Client{Socket: l.socket("admin.sock")} }

func (l *hostileLab) readPorts(ctx context.Context) (map[string]observe.Port, error) {
	var ports []observe.Port
	if err := l.client().Get(ctx, "ports", &ports); err != nil {
		return nil, err
	}
	byMAC := map[string]observe.Port{}
	for _, p := range ports {
		byMAC[p.MAC] = p
	}
	return byMAC, nil
}

// station is the pod as the switch knows it.
func (l *hostileLab) station(p pod) station {
	var st station
	copy(st.MAC[:], p.mac)
	for _, a := range l.ports[p.mac.String()].Addresses {
		if a.Is4() {
			st.IP4 = a
		} else {
			st.IP6 = a
		}
	}
	return st
}

// aim fills in who attacks whom.
func (l *hostileLab) aim(spec attackSpec) attackSpec {
	spec.Netns, spec.Own, spec.Victim, spec.Router = netnsPath(l.attacker.netns), l.station(l.attacker), l.station(l.to), l.gateway
	return spec
}

// questions are the asker's: for the stream's receiver and the gateway, in both families.
func (l *hostileLab) questions() askSpec {
	to := l.station(l.to)
	return askSpec{Netns: netnsPath(l.asker.netns), Device: podDevice, Own: l.station(l.asker), Every: askEvery,
		Targets: []netip.Addr{to.IP4, to.IP6, l.gateway.IP4, l.gateway.IP6}}
}

// attackerDrops returns what the switch has dropped of the attacker's so far, by reason, and as "ring" what the
// kernel dropped because the switch did not fetch it.
func (l *hostileLab) attackerDrops(ctx context.Context) (map[string]uint64, error) {
	var drops []observe.Drop
	if err := l.client().Get(ctx, "drops", &drops); err != nil {
		return nil, err
	}
	counts := map[string]uint64{}
	for _, d := range drops {
		if d.Port == l.ports[l.attacker.mac.String()].Name {
			counts[d.Reason] += d.WireFrames
		}
	}
	kernel, err := l.attacker.kernelDrops()
	counts["ring"] = kernel.tx
	return counts, err
}

func (l *hostileLab) close() error {
	var err error
	if l.void != nil {
		err = l.void.Remove() // or its descriptor would keep the namespace
	}
	return errors.Join(err, l.agent.close(), deleteNetns(l.attacker.netns, l.asker.netns))
}
