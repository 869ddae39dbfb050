package attach

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sweepInterval is how long a pod whose namespace vanished without a DEL keeps its address.
const sweepInterval = 5 * time.Second

// Sweep reconciles, and then detaches pods whose device or namespace is gone, every 5 s until ctx ends. After a restore our own
// descriptor keeps the device and its namespace alive, so the recorded path is compared as well.
func (m *Manager) Sweep(ctx context.Context) {
	if err := m.Reconcile(ctx); err != nil && ctx.Err() == nil {
		m.cfg.Log.Error("at the start", "err", err)
	}
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.sweep(ctx)
		}
	}
}

func (m *Manager) sweep(ctx context.Context) {
	for _, e := range m.snapshot() {
		if !m.vanished(e) {
			continue
		}
		if err := m.sweepOne(ctx, e.a.Key()); err != nil {
			m.cfg.Log.Error("detach a pod that vanished", "port", e.a.Name, "error", err)
		}
	}
}

func (m *Manager) vanished(e entry) bool { return e.dev != nil && (e.dev.Gone() || !m.hasNetns(e.a)) }

// sweepOne looks again while nobody else works on the attachment: a DEL and an ADD of the same key may have come
// since it was listed, and its descriptor may have been another's.
func (m *Manager) sweepOne(ctx context.Context, key string) error {
	defer m.locks.lock(key)()
	e, known := m.get(key)
	if !known || !m.vanished(e) {
		return nil
	}
	m.cfg.Log.Warn("a pod vanished without a DEL; detaching it", "port", e.a.Name, "attachment", key)
	return m.del(context.WithoutCancel(ctx), Request{ContainerID: e.a.ContainerID, IfName: e.a.IfName, NetnsFD: -1})
}

// hasNetns says whether the namespace is still where it was, or can't be looked at just now. A path in
// /proc goes with its process, which other processes of the pod may outlive.
func (m *Manager) hasNetns(a Attachment) bool {
	if strings.HasPrefix(a.NetnsPath, "/proc/") {
		return true
	}
	fd, err := m.openRecorded(a)
	if err == nil {
		unix.Close(fd)
	}
	return !errors.Is(err, errGone)
}
