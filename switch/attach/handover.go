package attach

import "tapyard/switch/port"

// hostStoreName is what the store calls tapyard0's descriptor.
const hostStoreName = "host"

// podStoreName is what the store calls an attachment's.
func podStoreName(key string) string { return "pod/" + key }

// keep has the store keep an attachment's device for the next process. Without that, the next process opens it anew,
// which costs frames, so an error is no reason to fail.
func (m *Manager) keep(a Attachment, dev device) {
	if err := m.cfg.Store.Keep(podStoreName(a.Key()), dev.FDs()...); err != nil {
		m.cfg.Log.Warn("a restart of the agent will cost this pod frames", "port", a.Name, "err", err)
	}
}

// unkeep ends that, before the device goes.
func (m *Manager) unkeep(key string) {
	if err := m.cfg.Store.Drop(podStoreName(key)); err != nil { // the next start drops it, as nobody will want it
		m.cfg.Log.Warn("the service manager keeps the descriptor of a pod that is gone", "attachment", key, "err", err)
	}
}

// inherit opens a recorded attachment's port with the descriptors that were kept, in the calling thread's network
// namespace, where a TAP is called name; nil without an error if there are none that fit.
func (m *Manager) inherit(name string, a Attachment) (dev device) {
	_, err := m.cfg.Store.Adopt(podStoreName(a.Key()), func(fds []int) (err error) {
		if a.PortType == Veth {
			dev, err = opened(port.AdoptPacket(m.packetConfig(a), fds))
		} else {
			dev, err = opened(port.AdoptTAP(m.tapConfig(name, a), fds))
		}
		return err
	})
	if err != nil {
		m.cfg.Log.Warn("the kept descriptor of a pod is of no use; its device is opened anew", "port", a.Name, "err", err)
	}
	return dev
}

// reopen opens the port of a recorded attachment, in the calling thread's network namespace.
func (m *Manager) reopen(name string, a Attachment) (dev device, err error) {
	if dev = m.inherit(name, a); dev != nil {
		return dev, nil
	}
	if dev, err = m.openDevice(name, a); err == nil {
		m.keep(a, dev)
	}
	return dev, err
}
