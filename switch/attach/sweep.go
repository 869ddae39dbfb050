package attach

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sweepInterval is how long a pod whose processes have ended without a DEL keeps its address, and sweepDelay one whose
// namespace has lost its name: in that time most DELs come.
const sweepInterval, sweepDelay = 5 * time.Second, time.Second

// Sweep reconciles, and then detaches pods whose device is gone or whose namespace nobody uses but we: a TAP's descriptor keeps
// both alive. It looks every 5 s, and 1 s after a mount has come or gone, until ctx ends.
func (m *Manager) Sweep(ctx context.Context) {
	if err := m.Reconcile(ctx); err != nil && ctx.Err() == nil {
		m.cfg.Log.Error("at the start", "err", err)
	}
	var watching sync.WaitGroup
	defer watching.Wait()
	mounts := make(chan struct{}, 1)
	watching.Go(func() {
		if err := watchMounts(ctx, mounts); err != nil {
			m.cfg.Log.Warn("pods that vanish without a DEL are noticed later", "within", sweepInterval, "err", err)
		}
	})
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-mounts:
			select {
			case <-ctx.Done():
				return
			case <-time.After(sweepDelay):
			}
		}
		m.sweep(ctx)
	}
}

// watchMounts tells when a mount of ours comes or goes (proc_pid_mountinfo(5)), until ctx ends. It never waits for who listens.
func watchMounts(ctx context.Context, changed chan<- struct{}) error {
	mounts, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/self/mountinfo: %w", err)
	}
	defer unix.Close(mounts)
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	defer unix.Close(end)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		unix.Write(end, binary.NativeEndian.AppendUint64(nil, 1)) // has room
	})
	defer func() {
		if !stop() {
			<-ended
		}
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(mounts), Events: unix.POLLPRI}, {Fd: int32(end), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll /proc/self/mountinfo: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		if fds[0].Revents != 0 {
			select {
			case changed <- struct{}{}:
			default: // it is told already
			}
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

// vanished asks used, which is netnsPaths or what it has returned, only about a namespace that isn't where it was. It is about
// pods without a device, too: of a DEL that failed half way and isn't repeated.
func (m *Manager) vanished(e entry, used func() (map[uint64]string, error)) bool {
	return e.dev != nil && e.dev.Gone() || e.located && !isUsed(e.a, used)
}

// sweepOne detaches a pod that has vanished.
func (m *Manager) sweepOne(ctx context.Context, key string) error {
	gone := func(e entry) bool { return m.vanished(e, netnsPaths) }
	return m.detachIf(ctx, key, gone, "a pod vanished without a DEL; detaching it")
}

// detachIf looks again while nobody else works on the attachment: a DEL and an ADD of the same key may have come
// since it was listed, and its descriptor may have been another's.
func (m *Manager) detachIf(ctx context.Context, key string, stale func(entry) bool, message string) error {
	defer m.locks.lock(key)()
	e, known := m.get(key)
	if !known || !stale(e) {
		return nil
	}
	m.cfg.Log.Warn(message, "port", e.a.Name, "attachment", key, "network", e.a.Conflist)
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
