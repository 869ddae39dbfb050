package attach

import (
	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

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

// inherit opens a recorded attachment's port with the descriptors that were kept; nil if there are none that fit.
func (m *Manager) inherit(a Attachment) (dev device) {
	_, err := m.cfg.Store.Adopt(podStoreName(a.Key()), func(fds []int) (err error) {
		if a.PortType == Veth {
			dev, err = opened(port.AdoptPacket(m.packetConfig(a), fds))
		} else {
			dev, err = opened(port.AdoptTAP(m.tapConfig("", a), a.netns(), fds))
		}
		return err
	})
	if err != nil {
		m.cfg.Log.Warn("the kept descriptor of a pod is of no use; its device is opened anew", "port", a.Name, "err", err)
	}
	return dev
}

// open opens the port of a recorded attachment.
func (m *Manager) open(a Attachment) (dev device, err error) {
	if dev = m.inherit(a); dev != nil {
		return dev, nil
	}
	if a.PortType == Veth {
		dev, err = m.reopenPair(a)
	} else {
		dev, err = m.reopenTAP(a)
	}
	if err == nil {
		m.keep(a, dev)
	}
	return dev, err
}

// reopenTAP opens the device inside the pod.
func (m *Manager) reopenTAP(a Attachment) (dev device, err error) {
	fd, err := m.openRecorded(a)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	p, err := openPod(fd)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	link, err := p.ours(a.Key())
	if err != nil {
		return nil, err
	}
	err = inNetns(fd, func() (err error) {
		dev, err = m.openDevice(link.Attrs().Name, a)
		return err
	})
	return dev, err
}
