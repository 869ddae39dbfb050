package attach

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tapyard/cniplugin/podapi"
)

// Del detaches a pod: of the request it needs the container and the interface only. An attachment that
// does not exist, in whole or in part, is no error. It does not stop half way when the context ends.
func (m *Manager) Del(ctx context.Context, req Request) error {
	if err := podapi.CheckNames(req.ContainerID, req.IfName); err != nil {
		return err
	}
	defer m.locks.lock(req.key())()
	// Half a withdrawal would leave workers on a device that the next DEL takes away.
	if err := m.del(context.WithoutCancel(ctx), req); err != nil {
		return fmt.Errorf("detach %s: %w", req.key(), err)
	}
	return nil
}

// del lets go in this order: frames, device, record, addresses.
func (m *Manager) del(ctx context.Context, req Request) error {
	r := &removal{m: m, ctx: ctx, req: req, key: req.key()}
	r.e, r.known = m.get(r.key)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"unmap ports", func() error { return m.unmapPorts(r.key) }},
		{"withdraw", r.withdraw},
		{"remove the device", r.removeDevice},
		{"remove what a killed ADD left", r.removeLeftover},
		{"release the plugin's addresses", func() error { return m.releaseIPAM(ctx, r.e.a, req) }},
		{"delete the record", func() error { return m.store.delete(r.key) }},
		{"release the addresses", r.release},
	} {
		err := m.at("DEL: " + step.name)
		if err == nil {
			err = step.do()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", step.name, err), r.close())
		}
	}
	if r.known {
		m.cfg.Log.Info("pod detached", "port", r.e.a.Name, "attachment", r.key)
	}
	_ = m.at("DEL: answer") // too late to fail
	return nil
}

// removal is one Del on its way.
type removal struct {
	m     *Manager
	ctx   context.Context
	req   Request
	key   string
	e     entry
	known bool
	dev   device // that is withdrawn, and not removed
	gone  bool   // the device was there and is no more
}

func (r *removal) withdraw() error {
	if r.e.dev == nil {
		return nil
	}
	if d := r.e.a.IPAM; d != nil && d.Type == dhcp { // its daemon tells the server, through the device
		if err := r.m.releaseIPAM(r.ctx, r.e.a, r.req); err != nil {
			return err
		}
	}
	if err := r.m.cfg.Withdraw(r.ctx, r.e.a); err != nil {
		return err
	}
	r.m.unpublish(r.key)
	r.dev = r.e.dev
	return nil
}

// removeDevice is by the port, or else by what the record and the key tell: its restore failed or is yet to come,
// or a DEL before this one got no further.
func (r *removal) removeDevice() error {
	if r.known {
		r.m.unkeep(r.key) // perhaps of a device that is not published: what is kept keeps its namespace alive
	}
	if dev := r.dev; dev != nil {
		r.dev = nil // closed, whatever comes of it
		err := r.m.removeDevice(dev)
		r.gone = err == nil
		return err
	}
	err := removePair(r.key)
	if r.known {
		err = errors.Join(err, r.m.removeRecorded(r.e.a))
	}
	return err
}

// removeLeftover needs not look beside a device: an ADD refuses to make a second one.
func (r *removal) removeLeftover() error {
	if r.gone {
		return nil
	}
	return removeAt(r.req)
}

func (r *removal) release() error {
	r.m.release(r.key)
	r.m.forget(r.key)
	return nil
}

// close lets go of a device that the next DEL will find by its alias.
func (r *removal) close() error {
	if r.dev == nil {
		return nil
	}
	return r.dev.Close()
}

// unpublish notes that the device is about to go, so that a repeated DEL does not touch it.
func (m *Manager) unpublish(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[key].dev = nil
}

// removeDevice returns when the device is out of the pod, and leaves the rest to the kernel.
func (m *Manager) removeDevice(dev device) error {
	ended, err := dev.Delete()
	m.removals.Go(func() { <-ended })
	if err != nil {
		return fmt.Errorf("remove the device: %w", err)
	}
	return nil
}

// removeRecorded deletes the device of an attachment that is not published: its restore failed, or is yet
// to come.
func (m *Manager) removeRecorded(a Attachment) error {
	fd, err := m.openRecorded(a)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return removeAt(Request{ContainerID: a.ContainerID, IfName: a.IfName, NetnsFD: fd})
}

// removeAt deletes what bears our alias in the namespace that came with the request: the device of an ADD
// that was killed before its record was written.
func removeAt(req Request) error {
	if req.NetnsFD < 0 {
		return nil
	}
	if _, err := netnsOf(req.NetnsFD); err != nil {
		return nil // the path of a namespace that is gone
	}
	p, err := openPod(req.NetnsFD)
	if err != nil {
		return err
	}
	defer p.Close()
	return p.remove(req.key())
}
