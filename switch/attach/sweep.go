package attach

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sweepInterval is how long a pod whose namespace vanished without a DEL keeps its address.
const sweepInterval = 5 * time.Second

// Sweep reconciles, and then detaches pods whose device is gone or whose namespace nobody uses but we, every 5 s until ctx
// ends: a TAP's descriptor keeps the device and the namespace alive.
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
	used := sync.OnceValues(netnsPaths)
	for _, e := range m.snapshot() {
		if !m.vanished(e, used) {
			continue
		}
		if err := m.sweepOne(ctx, e.a.Key()); err != nil {
			m.cfg.Log.Error("detach a pod that vanished", "port", e.a.Name, "error", err)
		}
	}
}

// vanished asks used, which is netnsPaths or what it has returned, only about a namespace that isn't where it was.
func (m *Manager) vanished(e entry, used func() (map[uint64]string, error)) bool {
	return e.dev != nil && (e.dev.Gone() || e.located && !isUsed(e.a, used))
}

// sweepOne looks again while nobody else works on the attachment: a DEL and an ADD of the same key may have come
// since it was listed, and its descriptor may have been another's.
func (m *Manager) sweepOne(ctx context.Context, key string) error {
	defer m.locks.lock(key)()
	e, known := m.get(key)
	if !known || !m.vanished(e, netnsPaths) {
		return nil
	}
	m.cfg.Log.Warn("a pod vanished without a DEL; detaching it", "port", e.a.Name, "attachment", key)
	return m.del(context.WithoutCancel(ctx), Request{ContainerID: e.a.ContainerID, IfName: e.a.IfName, NetnsFD: -1})
}

// isUsed says whether the pod's namespace is still where it was, or is mounted or has a process elsewhere, or can't be
// looked for: a path in /proc goes with its process, which others of the pod may outlive.
func isUsed(a Attachment, used func() (map[uint64]string, error)) bool {
	if a.isLocated() {
		return true
	}
	paths, err := used()
	return err != nil || paths[a.NetnsIno] != ""
}

// isLocated says whether the recorded path leads to the pod's namespace.
func (a Attachment) isLocated() bool {
	var st unix.Stat_t
	return unix.Stat(a.NetnsPath, &st) == nil && st.Dev == a.NetnsDev && st.Ino == a.NetnsIno
}
