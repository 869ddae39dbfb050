package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Restore publishes the recorded attachments again. Those whose pod is gone are forgotten. One that can't be
// restored is logged and stays recorded for its DEL. Guards of uplinks are pruned as well: the caller has opened
// its own before.
func (m *Manager) Restore(ctx context.Context) error {
	start := time.Now()
	var restored, gone, failed int
	for _, e := range m.snapshot() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("restore attachments: %w", err)
		}
		err := m.restore(e)
		switch {
		case err == nil:
			restored++
		case errors.Is(err, errGone):
			gone++
			m.cfg.Log.Info("forget a pod that went while the agent was down", "port", e.a.Name, "attachment", e.a.Key(), "why", err)
			if err := errors.Join(removePair(e.a.Key()), m.releaseIPAM(ctx, e.a, Request{ContainerID: e.a.ContainerID, IfName: e.a.IfName}), m.drop(e.a.Key())); err != nil {
				return fmt.Errorf("forget %s: %w", e.a.Key(), err)
			}
		default:
			failed++
			m.cfg.Log.Error("pod not restored; it stays cut off until it is created anew or the agent restarts", "port", e.a.Name, "attachment", e.a.Key(), "err", err)
		}
	}
	if err := pruneGuards(); err != nil { // of pods that vanished while no agent ran
		m.cfg.Log.Error("leftovers in nftables", "err", err)
	}
	m.cfg.Log.Info("attachments restored", "restored", restored, "gone", gone, "failed", failed, "took", time.Since(start))
	return nil
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
	var dev device
	if e.a.PortType == Veth {
		dev, err = m.reopenPair(e.a)
	} else {
		err = inNetns(fd, func() (err error) {
			dev, err = m.reopen(link.Attrs().Name, e.a)
			return err
		})
	}
	if err != nil {
		return err
	}
	if e.a, err = m.follow(p, link, e.a); err == nil {
		err = errors.Join(m.renewCopies(p, link, e.a), p.reconfigure(link, e.a))
	}
	if err == nil {
		err = m.publish(e.a, dev, true)
	}
	if err != nil {
		return errors.Join(err, dev.Close()) // the device stays
	}
	return nil
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
