package attach

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tapyard/cniplugin/podapi"
	"tapyard/switch/port"
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
	key := req.key()
	e, known := m.get(key)
	switch {
	case known && e.dev != nil:
		if err := m.cfg.Withdraw(ctx, e.a); err != nil {
			return fmt.Errorf("withdraw: %w", err)
		}
		m.unpublish(key)
		m.unkeep(key)
		if err := m.removeDevice(e.dev); err != nil {
			return err
		}
	case known:
		if err := errors.Join(removePair(key), m.removeRecorded(e.a)); err != nil {
			return err
		}
	default:
		if err := removePair(key); err != nil {
			return err
		}
	}
	if err := removeAt(req); err != nil {
		return err
	}
	if err := m.drop(key); err != nil {
		return err
	}
	if known {
		m.cfg.Log.Info("pod detached", "port", e.a.Name, "attachment", key)
	}
	return nil
}

// unpublish notes that the device is about to go, so that a repeated DEL does not touch it.
func (m *Manager) unpublish(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[key].dev = nil
}

// removeDevice accepts that the device has gone with its namespace. The store may still have the descriptor of a TAP.
func (m *Manager) removeDevice(dev device) error {
	remove := dev.Remove
	if tap, is := dev.(*port.TAP); is && m.cfg.Store != nil {
		remove = tap.Delete
	}
	if err := remove(); err != nil && !errors.Is(err, unix.EBADFD) {
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
	if _, err := netnsIDOf(req.NetnsFD); err != nil {
		return nil // the path of a namespace that is gone
	}
	p, err := openPod(req.NetnsFD)
	if err != nil {
		return err
	}
	defer p.Close()
	return p.remove(req.key())
}

// drop ends what we know of an attachment that has no device any more.
func (m *Manager) drop(key string) error {
	if err := m.store.delete(key); err != nil {
		return err
	}
	m.release(key)
	m.forget(key)
	return nil
}
