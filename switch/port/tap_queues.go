package port

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// busyWait is how long OpenTAP waits for a killed predecessor's descriptors to go: the kernel closes them
// some milliseconds after the process is reaped.
const busyWait = 2 * time.Second

// create makes the device with its first queue, and attaches the others.
func (t *TAP) create() error {
	if err := t.attachQueue(unix.IFF_TUN_EXCL); err != nil {
		return err
	}
	if err := t.setOffload(); err != nil { // its virtio-net headers have the size of the basic ones, as we want them
		return err
	}
	return t.attachRest()
}

// attach attaches the queues of a device that is there.
func (t *TAP) attach() error {
	if t.cfg.Queues > 1 {
		if err := awaitUnused(t.cfg.Device); err != nil {
			return err
		}
	}
	if err := t.attachQueue(0); err != nil {
		return err
	}
	if err := t.negotiate(); err != nil {
		return err
	}
	return t.attachRest()
}

// attachRest is for the queues after the first. The steering program is there before the second one: by the kernel's own choice
// a flow moves to the queue that last wrote to it. Of a device that is up, as at a restart, the first queue gets all
// frames until the others are there, some system calls later, and what follows in those may overtake them.
func (t *TAP) attachRest() error {
	if t.cfg.Queues <= 1 {
		return nil
	}
	var n int
	if n, t.unsteered = t.cfg.Steering.queues(t.cfg.Queues); n > 1 {
		if err := t.cfg.Steering.steer(t.fds[0]); err != nil {
			return err
		}
	}
	for len(t.fds) < n {
		if err := t.attachQueue(0); err != nil {
			return fmt.Errorf("queue %d: %w", len(t.fds), err)
		}
	}
	return t.checkAlone()
}

// attachQueue attaches one more queue; with IFF_TUN_EXCL the first one of a device that isn't there yet.
func (t *TAP) attachQueue(exclusive uint16) error {
	multiQueue := t.cfg.Queues > 1
	ifr, err := unix.NewIfreq(t.cfg.Device)
	if err != nil {
		return fmt.Errorf("device name of %d characters, at most %d: %w", len(t.cfg.Device), unix.IFNAMSIZ-1, err)
	}
	flags := unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | exclusive
	if multiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	for deadline := time.Now().Add(busyWait); ; time.Sleep(5 * time.Millisecond) {
		if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err == nil {
			t.fds = append(t.fds, fd)
			return nil
		}
		if err != unix.EBUSY || exclusive != 0 || time.Now().After(deadline) {
			break
		}
	}
	unix.Close(fd)
	switch {
	case err == unix.EBUSY && exclusive != 0:
		return ErrDeviceExists
	case err == unix.EBUSY:
		return ErrDeviceBusy
	case err == unix.EINVAL && multiQueue:
		return fmt.Errorf("TUNSETIFF: %w: is it a TAP, and made for several queues? a device keeps its kind", err)
	case err == unix.EINVAL:
		return fmt.Errorf("TUNSETIFF: %w: is it a TAP, and made for one queue? a device keeps its kind", err)
	}
	return fmt.Errorf("TUNSETIFF: %w", err)
}

// A device of one queue refuses a second user with EBUSY. One of several takes it silently and gives it a part of the
// flows, so it is asked how many there are, before we attach and after: of two processes that attach at once, both see it.

// awaitUnused waits until nobody is attached to a multi-queue device.
func awaitUnused(device string) error {
	for deadline := time.Now().Add(busyWait); ; time.Sleep(5 * time.Millisecond) {
		n, err := attachedQueues(device)
		if err != nil || n == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return ErrDeviceBusy
		}
	}
}

// checkAlone makes sure that the queues of a multi-queue device, wherever it is, are all ours.
func (t *TAP) checkAlone() error {
	link, err := t.link()
	if err != nil {
		return fmt.Errorf("ask who is attached: %w", err)
	}
	n, err := queuesOf(link)
	if err == nil && n != len(t.fds) {
		err = ErrDeviceBusy
	}
	return err
}

// attachedQueues asks the kernel, in the calling thread's network namespace; it doesn't say for a device of one queue.
func attachedQueues(device string) (int, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return 0, fmt.Errorf("ask who is attached: %w", err)
	}
	return queuesOf(link)
}

func queuesOf(link netlink.Link) (int, error) {
	tap, ok := link.(*netlink.Tuntap)
	if !ok {
		return 0, fmt.Errorf("it is a device of type %s, and no TAP", link.Type())
	}
	return tap.Queues + tap.DisabledQueues, nil
}

func (t *TAP) closeQueues() error {
	var errs []error
	for _, fd := range t.fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}
