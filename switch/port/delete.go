package port

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Read unregister_netdevice_many_notify and netdev_run_todo in net/core/dev.c of the kernel first: a device that is
// deleted is out of its namespace, name and all, within some 1 ms. The call that deletes it takes some 20 ms, in which
// it waits for what other CPUs may still do with the device (rcu_barrier), and calls at the same time share that wait.

// goneInterval is how often a device is looked at that is being deleted.
const goneInterval = 200 * time.Microsecond

// deleteAhead calls del, which has the kernel delete a device, and returns when gone says that the device is out of its
// namespace. What is left of del goes on, and then end is called, which closes the port: ended is closed afterwards.
// After an error it is closed already.
func deleteAhead(del func() error, gone func() bool, end func() error) (ended <-chan struct{}, err error) {
	done := make(chan struct{})
	if gone() {
		close(done)
		return done, end()
	}
	result := make(chan error, 1)
	go func() { result <- del() }()
	tick := time.NewTicker(goneInterval)
	defer tick.Stop()
	for !gone() {
		select {
		case err = <-result:
			close(done)
			if gone() {
				err = nil // whoever deleted it
			}
			return done, errors.Join(err, end())
		case <-tick.C:
		}
	}
	go func() {
		defer close(done)
		<-result  // the device is gone, whatever it says
		_ = end() // closes, with nothing to be flushed
	}()
	return done, nil
}

// Delete destroys the device, wherever it is, also if another process has its queues open, and closes the TAP: Remove
// waits for the last user of the device. A device that is gone already is no error. On return its name is free; ended is
// closed when the descriptors are, which keep the namespace alive until then, some 20 ms later.
func (t *TAP) Delete() (ended <-chan struct{}, err error) {
	return deleteAhead(t.deleteLink, t.Gone, t.Close)
}

func (t *TAP) deleteLink() error {
	device, ns, err := t.place()
	if err != nil {
		return fmt.Errorf("delete the device of port %s: %w", t.cfg.PortName, err)
	}
	defer ns.Close()
	socket, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("delete device %s: open netlink socket in its network namespace: %w", device, err)
	}
	defer socket.Close()
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC)) // without an index: by name
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(device)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("delete device %s: %w", device, err)
	}
	return nil
}

// Delete deletes the device, with it the other end of its pair, and closes the port. A device that is gone already is no
// error. On return both names are free; ended is closed when the kernel is done, some 20 ms later.
func (p *Packet) Delete() (ended <-chan struct{}, err error) {
	ended, err = deleteAhead(func() error {
		return netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: p.index}})
	}, p.Gone, p.close)
	return ended, errors.Join(err, release(p.cfg.Device))
}
