package attach

import (
	"context"
	"errors"
	"path/filepath"
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

func (m *Manager) vanished(e entry) bool { return e.dev != nil && (e.dev.Gone() || !m.hasNetns(e)) }

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
// /proc goes with its process, which other processes of the pod may outlive: while none of them pins the namespace
// but we, its device tells when it goes, and else they are looked for. What we have pinned was opened by its path,
// so the runtime's processes are in our /proc.
func (m *Manager) hasNetns(e entry) bool {
	fd, err := m.openRecorded(e.a)
	if err == nil {
		unix.Close(fd)
	}
	if errors.Is(err, errGone) && strings.HasPrefix(e.a.NetnsPath, "/proc/") {
		return !e.pinned || hasProcess(netnsID{e.a.NetnsDev, e.a.NetnsIno})
	}
	return !errors.Is(err, errGone)
}

// hasProcess says whether a process is in the network namespace, or can't be looked for.
func hasProcess(id netnsID) bool {
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil || len(paths) == 0 {
		return true
	}
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && (netnsID{st.Dev, st.Ino}) == id { // an error: it has ended meanwhile
			return true
		}
	}
	return false
}
