package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"tapyard/cniplugin/podapi"
	"tapyard/switch/port"
)

// Add attaches a pod. It is one transaction: on return everything is done and durable, or an error says
// which step failed and all is as before. The context is asked before each step. Errors wrap a
// *podapi.Error where the runtime should see a particular code.
func (m *Manager) Add(ctx context.Context, req Request) (Attachment, error) {
	a, err := m.describe(req)
	if err != nil {
		return Attachment{}, err
	}
	defer m.locks.lock(a.Key())()
	t := &addition{m: m, ctx: ctx, req: req, a: a}
	defer t.close()
	if err := t.run(); err != nil {
		t.unwind()
		return Attachment{}, fmt.Errorf("attach %s: %w", a.Key(), err)
	}
	_ = m.at("ADD: answer") // too late to fail
	m.cfg.Log.Info("pod attached", "port", t.a.Name, "attachment", t.a.Key(), "addresses", t.a.Addresses, "mac", t.a.MAC.String())
	return t.a, nil
}

// addition is one Add on its way. Each effect pushes what takes it back.
type addition struct {
	m    *Manager
	ctx  context.Context
	req  Request
	a    Attachment
	pod  *pod
	link netlink.Link // the pod's device
	dev  device
	undo []func() error
}

func (t *addition) run() error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"reserve the name", t.reserve},
		{"enter the pod", t.enter},
		{"allocate addresses", t.allocate},
		{"create the device", t.create},
		{"open the host's end", t.openHostEnd},
		{"ask the IPAM plugin", t.delegate},
		{"configure the pod", t.configure},
		{"write the record", t.record},
		{"keep the device", t.persist},
		{"map ports", t.mapPorts},
		{"publish", t.publish},
	} {
		if err := t.ctx.Err(); err != nil {
			return fmt.Errorf("before the step '%s': %w", step.name, errors.Join(podapi.Errorf(podapi.CodeTryAgain, "interrupted"), err))
		}
		err := t.m.at("ADD: " + step.name)
		if err == nil {
			err = step.do()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

func (t *addition) onUndo(f func() error) { t.undo = append(t.undo, f) }

func (t *addition) unwind() {
	for _, f := range slices.Backward(t.undo) {
		if err := f(); err != nil {
			t.m.cfg.Log.Error("undo of a failed ADD", "attachment", t.a.Key(), "err", err)
		}
	}
}

func (t *addition) close() {
	if t.pod != nil {
		t.pod.Close()
	}
}

// reserve makes the key and the port's name ours. A pod's name is not unique while a new sandbox is made
// before the old one is deleted. The MTU is asked for while nobody can list the entries: from here on SetMTU
// knows this one.
func (t *addition) reserve() error {
	m, key := t.m, t.a.Key()
	m.mu.Lock()
	defer m.mu.Unlock()
	network := m.networkOf(t.a.VNI)
	t.a.MTU = m.mtuOf(network, 0)
	if limit := t.a.MTULimit; limit > t.a.MTU {
		return wrong("mtu", limit, fmt.Sprintf("the network carries %d bytes at most; give less, or leave it out", t.a.MTU))
	} else if limit > 0 {
		t.a.MTU = limit
	}
	if err := network.checkMTU(t.a.MTU); err != nil {
		return err
	}
	if e, ok := m.entries[key]; ok {
		return podapi.Errorf(podapi.CodeEnvironment, "CNI_CONTAINERID and CNI_IFNAME: this attachment exists since %s; the runtime must send DEL first",
			e.a.Created.Format("2006-01-02T15:04:05Z07:00"))
	}
	if err := m.checkTaken(t.a); err != nil {
		return err
	}
	for _, e := range m.entries {
		if e.a.Name == t.a.Name {
			t.a.Name += "@" + t.a.ContainerID
			break
		}
	}
	m.entries[key] = &entry{a: t.a}
	t.onUndo(func() error { m.forget(key); return nil })
	return nil
}

// checkTaken refuses a MAC that another pod of the segment has; m.mu is held.
func (m *Manager) checkTaken(a Attachment) error {
	for _, e := range m.entries {
		if e.a.VNI == a.VNI && e.a.MAC == a.MAC {
			return podapi.Errorf(podapi.CodeTryAgain, "MAC %v: pod %s has it; want another one, or none, or delete that pod", a.MAC, e.a.Name)
		}
	}
	return nil
}

func (t *addition) enter() (err error) {
	t.pod, err = openPod(t.req.NetnsFD)
	return err
}

func (t *addition) allocate() error {
	key := t.a.Key()
	t.onUndo(func() error { t.m.release(key); return nil })
	if t.a.IPAM != nil {
		return nil
	}
	return t.m.allocate(&t.a, t.req.Conf.IPs)
}

// create makes the device where it belongs: to move one into a pod costs the kernel 20 ms, in which no other device of
// the machine can be changed (__dev_change_net_namespace waits for RCU under the lock of rtnetlink). Every change takes that
// lock, for which 32 ADDs stand in line, so there are few.
func (t *addition) create() (err error) {
	alias := t.m.agent.alias(t.a)
	if t.a.PortType == Veth {
		err = t.makePair(alias)
	} else {
		err = inNetns(t.req.NetnsFD, func() error { return t.makeTAP(alias) })
	}
	if errors.Is(err, port.ErrDeviceExists) {
		return podapi.Errorf(podapi.CodeEnvironment, "CNI_IFNAME: an interface %s exists in %s already", t.a.IfName, t.a.NetnsPath)
	}
	return err
}

func (t *addition) makePair(alias string) (err error) {
	t.onUndo(func() error { return removePair(t.a.Key()) })
	if err = createPair(t.m.temporary(), t.a, t.req.NetnsFD, alias); err != nil {
		return err
	}
	if t.link, err = t.pod.LinkByName(t.a.IfName); err != nil {
		return err
	}
	if err := t.pod.LinkSetAlias(t.link, alias); err != nil {
		return fmt.Errorf("set the alias of %s: %w", t.a.IfName, err)
	}
	return nil
}

// makeTAP is called in the pod's namespace, which the descriptor keeps alive from here on: Sweep notices when nobody else does.
func (t *addition) makeTAP(alias string) error {
	tap, err := port.MakeTAP(t.m.tapConfig(t.a.IfName, t.a))
	if err != nil {
		return err
	}
	t.onUndo(func() error { return t.m.removeDevice(tap) })
	t.m.warnUnsteered(tap)
	t.dev = tap
	index, err := linkIndex(t.a.IfName)
	if err != nil {
		return err
	}
	t.link = &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: t.a.IfName, Index: index}}
	t.pod.ipv6 = slices.ContainsFunc(t.a.Addrs(), netip.Addr.Is6)
	return dress(index, t.a, alias, t.pod.ipv6)
}

func (t *addition) openHostEnd() error {
	if t.a.PortType != Veth {
		return nil
	}
	p, err := port.OpenPacket(t.m.packetConfig(t.a))
	if err != nil {
		return err
	}
	t.onUndo(func() error { return t.m.removeDevice(p) })
	t.dev = p
	return nil
}

// openDevice opens a recorded attachment's port in the calling thread's network namespace, where a TAP is called name.
func (m *Manager) openDevice(name string, a Attachment) (device, error) {
	if a.PortType == Veth {
		return opened(port.OpenPacket(m.packetConfig(a)))
	}
	tap, err := port.OpenTAP(m.tapConfig(name, a))
	if err == nil {
		m.warnUnsteered(tap)
	}
	return opened(tap, err)
}

func (m *Manager) warnUnsteered(tap *port.TAP) {
	if why := tap.Unsteered(); why != nil {
		m.cfg.Log.Warn("a pod has fewer queues than it should", "port", tap.Name(), "why", why)
	}
}

func (m *Manager) packetConfig(a Attachment) port.PacketConfig {
	return port.PacketConfig{Device: a.HostIfName(), PortName: a.Name, PortKind: Veth}
}

func (m *Manager) tapConfig(name string, a Attachment) port.TAPConfig {
	return port.TAPConfig{Device: name, PortName: a.Name, Without: m.cfg.Without, Rings: m.cfg.Rings,
		Queues: a.Queues, Steering: m.cfg.Steering}
}

func opened[D device](d D, err error) (device, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (t *addition) configure() error {
	return t.pod.configure(t.link, t.a)
}

func (t *addition) record() error {
	if t.a.IPAM == nil { // else delegate takes it back
		key := t.a.Key()
		t.onUndo(func() error { return t.m.store.delete(key) })
	}
	return t.m.store.put(t.a)
}

// persist comes after the record, so that there is no device of which nobody knows: of an agent that is killed before,
// the record goes at the next start.
func (t *addition) persist() error {
	if tap, is := t.dev.(*port.TAP); is {
		return tap.Persist()
	}
	return nil
}

func (t *addition) publish() error {
	if err := t.m.publish(t.a, t.dev, t.a.isLocated()); err != nil {
		return err
	}
	t.m.keep(t.a, t.dev)
	return nil
}
