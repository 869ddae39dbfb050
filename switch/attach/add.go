package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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
	tmp  string // the device's name until it is renamed
	dev  device
	pod  *pod
	undo []func() error
}

func (t *addition) run() error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"reserve the name", t.reserve},
		{"look into the pod", t.inspect},
		{"allocate addresses", t.allocate},
		{"create the device", t.create},
		{"attach to the device", t.open},
		{"set up the device", t.dress},
		{"move the device", t.move},
		{"rename the device", t.rename},
		{"ask the IPAM plugin", t.delegate},
		{"configure the pod", t.configure},
		{"write the record", t.record},
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

func (t *addition) inspect() (err error) {
	if t.pod, err = openPod(t.req.NetnsFD); err != nil {
		return err
	}
	_, err = t.pod.LinkByName(t.a.IfName)
	if err == nil {
		return podapi.Errorf(podapi.CodeEnvironment, "CNI_IFNAME: an interface %s exists in %s already", t.a.IfName, t.a.NetnsPath)
	}
	if !isNoLink(err) {
		return fmt.Errorf("look for %s: %w", t.a.IfName, err)
	}
	return nil
}

func (t *addition) allocate() error {
	key := t.a.Key()
	t.onUndo(func() error { t.m.release(key); return nil })
	if t.a.IPAM != nil {
		return nil
	}
	return t.m.allocate(&t.a, t.req.Conf.IPs)
}

// create makes the device in the agent's namespace: a descriptor opened in the pod's would keep that
// namespace alive when the pod is gone.
func (t *addition) create() error {
	t.tmp = fmt.Sprintf("%s%06x", t.m.prefix, t.m.serial.Add(1)&0xffffff)
	t.onUndo(t.discard)
	if t.a.PortType == Veth {
		return createPair(t.tmp, t.a, t.m.agent.alias(t.a))
	}
	if t.a.Queues > 1 {
		return port.CreateMultiQueueTAP(t.tmp)
	}
	return port.CreateTAP(t.tmp)
}

// discard takes the device back, wherever it is by now.
func (t *addition) discard() error {
	if t.dev != nil {
		return t.dev.Remove()
	}
	link, err := netlink.LinkByName(t.tmp)
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if t.a.PortType == Veth {
		return errors.Join(netlink.LinkDel(link), pruneGuards())
	}
	return netlink.LinkDel(link)
}

func (t *addition) open() (err error) {
	t.dev, err = t.m.openDevice(t.tmp, t.a)
	return err
}

// openDevice opens the attachment's port in the calling thread's network namespace, where a TAP is called name.
func (m *Manager) openDevice(name string, a Attachment) (device, error) {
	if a.PortType == Veth {
		return opened(port.OpenPacket(m.packetConfig(a)))
	}
	tap, err := port.OpenTAP(m.tapConfig(name, a))
	if err == nil && tap.Unsteered() != nil {
		m.cfg.Log.Warn("a pod has fewer queues than it should", "port", a.Name, "why", tap.Unsteered())
	}
	return opened(tap, err)
}

func (m *Manager) packetConfig(a Attachment) port.PacketConfig {
	return port.PacketConfig{Device: a.HostIfName(), PortName: a.Name, PortKind: Veth}
}

func (m *Manager) tapConfig(name string, a Attachment) port.TAPConfig {
	return port.TAPConfig{Device: name, PortName: a.Name, NetnsPath: a.NetnsPath, Without: m.cfg.Without, Rings: m.cfg.Rings,
		Queues: a.Queues, Steering: m.cfg.Steering}
}

func opened[D device](d D, err error) (device, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// dress sets what stays with the device when it moves. The alias comes first, because it is how a kill's
// leftover is known as ours.
func (t *addition) dress() error {
	link, err := netlink.LinkByName(t.tmp)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetAlias(link, t.m.agent.alias(t.a)); err != nil {
		return fmt.Errorf("set the alias: %w", err)
	}
	if err := netlink.LinkSetHardwareAddr(link, net.HardwareAddr(t.a.MAC[:])); err != nil {
		return fmt.Errorf("set MAC %s: %w", t.a.MAC, err)
	}
	if err := netlink.LinkSetMTU(link, t.a.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", t.a.MTU, err)
	}
	if err := netlink.LinkSetTxQLen(link, txQueueLen); err != nil {
		return fmt.Errorf("set txqueuelen %d: %w", txQueueLen, err)
	}
	return nil
}

func (t *addition) move() error {
	link, err := netlink.LinkByName(t.tmp)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(link, t.req.NetnsFD); err != nil {
		return fmt.Errorf("into %s: %w", t.a.NetnsPath, err)
	}
	return nil
}

func (t *addition) rename() error {
	link, err := t.pod.LinkByName(t.tmp) // its index may have changed with the move
	if err != nil {
		return err
	}
	if err := t.pod.LinkSetName(link, t.a.IfName); err != nil {
		if errors.Is(err, unix.EEXIST) {
			err = podapi.Errorf(podapi.CodeEnvironment, "CNI_IFNAME: an interface of that name appeared meanwhile")
		}
		return fmt.Errorf("rename to %s: %w", t.a.IfName, err)
	}
	return nil
}

func (t *addition) configure() error {
	link, err := t.pod.LinkByName(t.a.IfName)
	if err != nil {
		return err
	}
	return t.pod.configure(link, t.a)
}

func (t *addition) record() error {
	key := t.a.Key()
	t.onUndo(func() error { return t.m.store.delete(key) })
	return t.m.store.put(t.a)
}

func (t *addition) publish() error {
	if err := t.m.publish(t.a, t.dev); err != nil {
		return err
	}
	t.m.keep(t.a, t.dev)
	return nil
}
