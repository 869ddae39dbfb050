package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"tapyard/switch/attach"
	"tapyard/switch/port"
)

// devicesInterval is how soon it is noticed that somebody has deleted a device of the node's own.
const devicesInterval = 5 * time.Second

// watchDevices ends the agent when tapyard0 was deleted: the next start makes it again, and pods stay attached.
// An uplink is the operator's to bring back, and pods without it are better off than without a switch.
func (a *agent) watchDevices(ctx context.Context) error {
	return every(ctx, devicesInterval, func() error {
		if a.host != nil && a.host.TAP.Gone() {
			return fmt.Errorf("device %s was deleted while the agent ran; ending, for the service manager to start the agent anew, which makes it again", attach.HostDevice)
		}
		a.uplinks = slices.DeleteFunc(a.uplinks, func(p *port.Packet) bool {
			if p.Gone() {
				a.log.Error("the uplink's device was deleted; restart the agent when it is back", "uplink", p.Name())
			}
			return p.Gone()
		})
		return nil
	})
}
