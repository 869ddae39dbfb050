package port

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// tunGetDevNetns is TUNGETDEVNETNS of linux/if_tun.h (kernel 5.5): a descriptor of the namespace that the device is in.
const tunGetDevNetns = 0x54e3

// Netns tells a network namespace from any other that there is at the same time, by the numbers of its file in /proc.
type Netns struct{ Dev, Ino uint64 }

// NetnsOf returns the namespace that a descriptor is one of.
func NetnsOf(fd int) (Netns, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Netns{}, fmt.Errorf("fstat of a network namespace: %w", err)
	}
	return Netns{st.Dev, st.Ino}, nil
}

// OwnNetns returns that of the calling thread.
func OwnNetns() (Netns, error) {
	here, err := netns.Get()
	if err != nil {
		return Netns{}, fmt.Errorf("open the network namespace: %w", err)
	}
	defer here.Close()
	return NetnsOf(int(here))
}

// AdoptTAP is OpenTAP with the descriptors of the device's queues that a predecessor has left open: meanwhile the kernel
// has kept the device up and its frames. The device is in the given namespace, which the caller needn't enter, and has
// any name if the configuration has none. AdoptTAP refuses descriptors of any other device, and another number than the
// configuration asks for; they stay the caller's then, and are the TAP's otherwise.
func AdoptTAP(cfg TAPConfig, in Netns, fds []int) (*TAP, error) {
	t := newTAP(cfg)
	t.fds = slices.Clone(fds)
	if err := t.adopt(in); err != nil {
		return nil, fmt.Errorf("adopt the TAP device of port %s: %w", cfg.PortName, err)
	}
	t.addRx()
	return t, nil
}

func (t *TAP) adopt(in Netns) error {
	multiQueue, want := t.cfg.Queues > 1, 1
	if multiQueue {
		want, t.unsteered = t.cfg.Steering.queues(t.cfg.Queues)
	}
	if len(t.fds) != want {
		return fmt.Errorf("%d descriptors, want those of %d queues", len(t.fds), want)
	}
	for _, fd := range t.fds {
		if err := verifyQueue(t.cfg.Device, in, fd, multiQueue); err != nil {
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

// verifyQueue says whether fd is a queue of the device in that network namespace. Each question may wait for the kernel's
// RTNL lock, so there are no more than two.
func verifyQueue(device string, in Netns, fd int, multiQueue bool) error {
	var ifr unix.Ifreq
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, &ifr); err != nil {
		return fmt.Errorf("TUNGETIFF (EBADFD means that the device is gone): %w", err)
	}
	const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if flags := ifr.Uint16(); device != "" && ifr.Name() != device || flags&want != want || (flags&unix.IFF_MULTI_QUEUE != 0) != multiQueue {
		return fmt.Errorf("the descriptor is that of %s with flags %#x", ifr.Name(), flags)
	}
	ns, err := netnsOf(fd)
	if err != nil {
		return err
	}
	defer ns.Close()
	got, err := NetnsOf(int(ns))
	if err == nil && got != in {
		err = fmt.Errorf("the descriptor is that of a device in another network namespace, %d instead of %d", got.Ino, in.Ino)
	}
	return err
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
// refuses that of any other device; it stays the caller's then, and is the Packet's otherwise. It takes it that the host
// is kept off the device still: whether so, RestoreGuards finds out for all devices at once, when frames move again.
func AdoptPacket(cfg PacketConfig, fds []int) (*Packet, error) {
	if len(fds) != 1 {
		return nil, fmt.Errorf("adopt the socket of device %s: %d descriptors, want one", cfg.Device, len(fds))
	}
	p, err := openPacket(cfg, true, func(index int) (int, error) { return fds[0], adoptPacket(fds[0], index) })
	if err != nil {
		return nil, fmt.Errorf("adopt the socket of device %s: %w", cfg.Device, err)
	}
	return p, nil
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
