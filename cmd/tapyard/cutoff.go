package main

import (
	"fmt"
	"math/rand/v2"
)

// peersTried is how many peers cutOff tries, some 0.2 ms each. A cluster may have thousands; of a node that reaches
// half of them, 16 are all of the other half once in 65,536 times.
const peersTried = 16

// cutOff says why this node reaches none of its peers, by what its kernel knows (attach.Underlay), or nil. One peer that it
// may reach is enough: that another node is down must not keep this one from taking pods.
func (a *agent) cutOff() error {
	if a.vteps == nil {
		return nil
	}
	peers := a.vteps.Peers()
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	peers = peers[:min(len(peers), peersTried)]
	var why error
	for _, p := range peers {
		err := a.underlay.Blocked(a.cfg.Underlay[0], p.Underlay)
		if err == nil {
			return nil
		}
		why = fmt.Errorf("none of %d peers tried can be reached, such as %s at %v: %w", len(peers), p.Name, p.Underlay, err)
	}
	return why
}
