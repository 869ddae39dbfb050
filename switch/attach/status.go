package attach

import (
	"encoding/json"
	"fmt"

	"tapyard/cniplugin/podapi"
)

// Read the CNI specification 1.1, section 2, STATUS, first.

func (m *Manager) handleStatus(stdin []byte) error {
	var conf struct {
		Network string `json:"network"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return podapi.Errorf(podapi.CodeDecode, "decode the network configuration: %v", err)
	}
	return m.Status(conf.Network)
}

// Status says why one of the node's networks ("" is its own) can take no pod now, or why the node's pods reach none of
// other nodes, as a *podapi.Error.
func (m *Manager) Status(network string) error {
	n, err := m.networkNamed(network)
	if err != nil {
		return err
	}
	full := n.full()
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

// full names a pool that has no address left.
func (n *network) full() error {
	for _, p := range n.pools {
		if err := p.Full(); err != nil {
			if n.name != "" {
				err = fmt.Errorf("network %s: %w", n.name, err)
			}
			return err
		}
	}
	return nil
}
