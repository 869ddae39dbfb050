package attach

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// reopening is how many devices Reopen opens at once. For most of it they wait for the kernel's RTNL lock, which is handed
// from one who waits to the next; one by one, each would wait anew behind whatever else the node does to its devices.
const reopening = 16

// Reopen publishes the recorded attachments whose devices it can open, by the descriptors that a predecessor has left if
// it did, and doesn't look at anything else: frames are waiting. Restore, which comes after it, sees to the rest.
func (m *Manager) Reopen() {
	entries := m.snapshot()
	devs := make([]device, len(entries))
	var opening sync.WaitGroup
	slots := make(chan struct{}, reopening)
	for i, e := range entries {
		if e.fail != nil || e.a.BootID != m.bootID {
			continue
		}
		slots <- struct{}{}
		opening.Go(func() {
			devs[i], _ = m.open(e.a) // Restore tries again, and tells
			<-slots
		})
	}
	opening.Wait()
	for i, dev := range devs { // in the order in which pods came
		if dev == nil {
			continue
		}
		if err := m.publish(entries[i].a, dev, false); err != nil { // Restore looks for the pod
			m.unkeep(entries[i].a.Key()) // or Restore would find the device busy
			m.cfg.Log.Error("pod not served at once", "port", entries[i].a.Name, "err", errors.Join(err, dev.Close()))
		}
	}
}

// note has an attachment's entry say what its record says, and that its pod was found.
func (m *Manager) note(a Attachment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[a.Key()]
	e.a, e.located = a, true
}

// Restore publishes the recorded attachments that aren't, and gives all pods back what they have lost meanwhile. Those
// whose pod is gone are detached, and what an ADD had begun when it was killed is undone. One that can't be restored, or
// detached, is logged and stays recorded for its DEL. Guards of uplinks are pruned as well: the caller has opened its own
// before.
func (m *Manager) Restore(ctx context.Context) error {
	start := time.Now()
	if err := removeTemporary(m.prefix); err != nil {
		return err
	}
	var restored, gone, failed int
	for _, e := range m.snapshot() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("restore attachments: %w", err)
		}
		counted, err := &restored, m.restore(e)
		if errors.Is(err, errGone) {
			m.cfg.Log.Info("forget a pod that went while the agent was down", "port", e.a.Name, "attachment", e.a.Key(), "why", err)
			counted, err = &gone, m.Del(ctx, Request{ContainerID: e.a.ContainerID, IfName: e.a.IfName, NetnsFD: -1})
		}
		if err != nil {
			counted = &failed
			m.cfg.Log.Error(unrestored(e), "port", e.a.Name, "attachment", e.a.Key(), "err", err)
		}
		*counted++
	}
	if err := pruneGuards(); err != nil { // of pods that vanished while no agent ran
		m.cfg.Log.Error("leftovers in nftables", "err", err)
	}
	m.cfg.Log.Info("attachments restored", "restored", restored, "gone", gone, "failed", failed, "took", time.Since(start))
	return nil
}

// unrestored says what it means for the pod.
func unrestored(e entry) string {
	if e.dev != nil {
		return "pod is served, but not all of it could be restored"
	}
	return "pod not restored; it stays cut off until it is created anew or the agent restarts"
}

func (m *Manager) restore(e entry) error {
	fd, err := m.openRecorded(e.a)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p, err := openPod(fd)
	if err != nil {
		return err
	}
	defer p.Close()
	link, err := p.ours(e.a.Key())
	if err != nil {
		return err
	}
	if e.fail != nil {
		return e.fail
	}
	dev := e.dev
	if dev == nil {
		if dev, err = m.open(e.a); err != nil {
			return err
		}
	}
	if e.a, err = m.follow(p, link, e.a); err == nil {
		err = errors.Join(m.renewCopies(p, link, e.a), p.reconfigure(link, e.a))
	}
	if e.dev != nil {
		m.note(e.a)
		return err
	}
	if err == nil {
		err = m.publish(e.a, dev, true)
	}
	if err != nil {
		err = errors.Join(err, dev.Close()) // the device stays
	}
	return err
}

// renewCopies has the device's alias, and its other end's, say what the record says: its MTU may have changed, or
// the state directory's name.
func (m *Manager) renewCopies(p *pod, link netlink.Link, a Attachment) error {
	alias := m.agent.alias(a)
	if link.Attrs().Alias != alias {
		if err := p.LinkSetAlias(link, alias); err != nil {
			return fmt.Errorf("set the alias: %w", err)
		}
	}
	if a.PortType != Veth {
		return nil
	}
	host, err := hostEnd(a.Key())
	if err == nil && host != nil && host.Attrs().Alias != alias {
		err = netlink.LinkSetAlias(host, alias)
	}
	return err
}
