package port

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// tunGetDevNetns is TUNGETDEVNETNS of linux/if_tun.h (kernel 5.5): a descriptor of the namespace that the device is in.
const tunGetDevNetns = 0x54e3

// AdoptTAP is OpenTAP with the descriptors of the device's queues that a predecessor has left open: meanwhile the kernel
// has kept the device up and its frames. It refuses those of any other device, and another number than the configuration
// asks for; they stay the caller's then, and are the TAP's otherwise.
func AdoptTAP(cfg TAPConfig, fds []int) (*TAP, error) {
	t := newTAP(cfg)
	t.fds = slices.Clone(fds)
	if err := t.adopt(); err != nil {
		return nil, fmt.Errorf("adopt TAP device %s: %w", cfg.Device, err)
	}
	t.addRx()
	return t, nil
}

func (t *TAP) adopt() error {
	multiQueue, want := t.cfg.Queues > 1, 1
	if multiQueue {
		want, t.unsteered = t.cfg.Steering.queues(t.cfg.Queues)
	}
	if len(t.fds) != want {
		return fmt.Errorf("%d descriptors, want those of %d queues", len(t.fds), want)
	}
	for _, fd := range t.fds {
		if err := verifyQueue(t.cfg.Device, fd, multiQueue); err != nil {
			return err
		}
	}
	if err := t.negotiate(); err != nil || !multiQueue {
		return err
	}
	if want > 1 {
		if err := t.cfg.Steering.steer(t.fds[0]); err != nil {
			return err
		}
	}
	return t.checkAlone()
}

// verifyQueue says whether fd is a queue of the device in the calling thread's network namespace.
func verifyQueue(device string, fd int, multiQueue bool) error {
	var ifr unix.Ifreq
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, &ifr); err != nil {
		return fmt.Errorf("TUNGETIFF (EBADFD means that the device is gone): %w", err)
	}
	const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if flags := ifr.Uint16(); ifr.Name() != device || flags&want != want || (flags&unix.IFF_MULTI_QUEUE != 0) != multiQueue {
		return fmt.Errorf("the descriptor is that of %s with flags %#x", ifr.Name(), flags)
	}
	ns, err := netnsOf(fd)
	if err != nil {
		return err
	}
	defer ns.Close()
	here, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer here.Close()
	if !here.Equal(ns) {
		return fmt.Errorf("the descriptor is that of a device in another network namespace, %v instead of %v", ns, here)
	}
	return nil
}

// netnsOf returns the network namespace that a queue's device is in.
func netnsOf(fd int) (netns.NsHandle, error) {
	ns, err := unix.IoctlRetInt(fd, tunGetDevNetns)
	if err != nil {
		return netns.None(), fmt.Errorf("TUNGETDEVNETNS: %w", err)
	}
	return netns.NsHandle(ns), nil
}

// FDs returns the descriptors of the queues, for a successor. They stay the TAP's.
func (t *TAP) FDs() []int { return slices.Clone(t.fds) }

// AdoptPacket is OpenPacket with the socket that a predecessor has left open, in which the kernel has kept frames. It
// refuses that of any other device; it stays the caller's then, and is the Packet's otherwise.
func AdoptPacket(cfg PacketConfig, fds []int) (*Packet, error) {
	if len(fds) != 1 {
		return nil, fmt.Errorf("adopt the socket of device %s: %d descriptors, want one", cfg.Device, len(fds))
	}
	p, err := openPacket(cfg, isGuarded, func(index int) (int, error) { return fds[0], adoptPacket(fds[0], index) })
	if err != nil {
		return nil, fmt.Errorf("adopt the socket of device %s: %w", cfg.Device, err)
	}
	return p, nil
}

// isGuarded says whether the device has what a predecessor has put there to keep the host off. A transaction of nftables
// takes the kernel some 10 ms, in which frames wait.
func isGuarded(device string) bool {
	guards, err := listGuards()
	return err == nil && guards[device] != ""
}

// adoptPacket has an open socket be what listenPacket returns.
func adoptPacket(fd, index int) error {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	if ll, ok := sa.(*unix.SockaddrLinklayer); !ok || ll.Ifindex != index {
		return fmt.Errorf("the descriptor is bound to %+v, want a packet socket of device %d", sa, index)
	}
	return setPacketOptions(fd)
}

// FDs returns the socket's descriptor, for a successor. It stays the Packet's.
func (p *Packet) FDs() []int { return []int{p.fd} }
