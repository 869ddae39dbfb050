package attach

import (
	"context"
	"fmt"

	"tapyard/cniplugin/podapi"
)

// Read the CNI specification 1.1, section 2, STATUS, first.

func (m *Manager) handleStatus(ctx context.Context, conf Conf) error {
	if err := m.Status(conf); err != nil {
		return err
	}
	return callIPAM(ctx, "STATUS", conf)
}

// Status says why the network of a configuration can take no pod of it now, or why the node's pods reach none of
// other nodes, as a *podapi.Error.
func (m *Manager) Status(conf Conf) error {
	n, err := m.networkNamed(conf.Network)
	if err != nil {
		return err
	}
	full := n.full(&conf)
	if m.cfg.CutOff != nil {
		if err := m.cfg.CutOff(); err != nil {
			e := podapi.Errorf(podapi.CodeLimited, "this node's pods reach none of other nodes: %v", err)
			if full != nil {
				e.Details = full.Error()
			}
			return e
		}
	}
	if full != nil {
		return podapi.Errorf(podapi.CodeNotAvailable, "no pod can be added: %v", full)
	}
	return nil
}

// full names a pool of the configuration's that has no address left.
func (n *network) full(conf *Conf) error {
	if conf.IPAM != nil {
		return nil // its plugin is asked
	}
	for _, pool := range n.pools {
		p, err := n.part(pool, conf.Ranges)
		if err == nil {
			err = p.Full()
		}
		if err != nil {
			if n.name != "" {
				err = fmt.Errorf("network %s: %w", n.name, err)
			}
			return err
		}
	}
	return nil
}
