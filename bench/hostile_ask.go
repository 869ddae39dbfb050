package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/wire"
)

// askSpec says what a pod asks for: the link-layer addresses of Targets, in turn.
type askSpec struct {
	Netns   string // path of the pod's namespace
	Device  string
	Own     station
	Targets []netip.Addr
	Every   time.Duration // between two questions; an answer that comes after the next question for its target is late
}

// askResult is what came back.
type askResult struct {
	Asked    int
	Answered int           // by the time that the same was asked again
	Slowest  time.Duration // of the answers
	Retries  int           // the most questions in a row for one target that had no answer
	MACs     map[netip.Addr]wire.MAC
}

// asker asks as the kernel would for a neighbour that it doesn't know, but remembers nothing.
type asker struct {
	spec   askSpec
	fd     int
	open   map[netip.Addr]time.Time // questions without an answer, and when they were sent
	missed map[netip.Addr]int       // questions in a row
	result askResult
}

// ask is the job of an asker: from one line on standard input to the next.
func ask(c *console, spec askSpec) (askResult, error) {
	if err := enterForGood(spec.Netns); err != nil {
		return askResult{}, err
	}
	a, err := newAsker(spec)
	if err != nil {
		return askResult{}, fmt.Errorf("set up questions on %s: %w", spec.Device, err)
	}
	defer unix.Close(a.fd)
	if err := errors.Join(c.ready(), c.wait()); err != nil {
		return askResult{}, err
	}
	var ending atomic.Bool
	gone := make(chan error, 1)
	go func() {
		gone <- c.wait()
		ending.Store(true)
	}()
	for i := 0; !ending.Load(); i++ {
		if err := a.question(spec.Targets[i%len(spec.Targets)]); err != nil {
			return a.result, err
		}
		if err := a.listen(time.Now().Add(spec.Every)); err != nil {
			return a.result, err
		}
	}
	err = a.listen(time.Now().Add(spec.Every * time.Duration(len(spec.Targets)))) // the last ones get their time too
	return a.result, errors.Join(err, <-gone)
}

func newAsker(spec askSpec) (*asker, error) {
	index, err := deviceIndex(spec.Device)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: deaf until bound
	if err != nil {
		return nil, fmt.Errorf("open an AF_PACKET socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, onlyTo(spec.Own.MAC)),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: htons(unix.ETH_P_ALL)}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &asker{spec: spec, fd: fd, open: map[netip.Addr]time.Time{}, missed: map[netip.Addr]int{},
		result: askResult{MACs: map[netip.Addr]wire.MAC{}}}, nil
}

// onlyTo is a filter that passes frames for the address alone, or a storm would overflow the socket, and the
// answers that it loses would be held against the switch.
func onlyTo(m wire.MAC) *unix.SockFprog {
	const load, half, absolute, jumpIfEqual = unix.BPF_LD, unix.BPF_H, unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ
	program := []unix.SockFilter{
		{Code: load | unix.BPF_W | absolute, K: 0},
		{Code: jumpIfEqual, Jf: 3, K: uint32(m[0])<<24 | uint32(m[1])<<16 | uint32(m[2])<<8 | uint32(m[3])},
		{Code: load | half | absolute, K: 4},
		{Code: jumpIfEqual, Jf: 1, K: uint32(m[4])<<8 | uint32(m[5])},
		{Code: unix.BPF_RET, K: 1 << 16},
		{Code: unix.BPF_RET, K: 0},
	}
	return &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func deviceIndex(name string) (int, error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	return dev.Index, nil
}

// question asks once more; the last question for the same target, if unanswered, stays so.
func (a *asker) question(target netip.Addr) error {
	var frame [wire.EthernetLen + wire.IPv6Len + wire.NDLen]byte
	if err := unix.Send(a.fd, a.craft(frame[:], target), 0); err != nil {
		return fmt.Errorf("ask for %s: %w", target, err)
	}
	a.result.Asked++
	if _, missed := a.open[target]; missed {
		a.missed[target]++
		a.result.Retries = max(a.result.Retries, a.missed[target])
	}
	a.open[target] = time.Now()
	return nil
}

func (a *asker) craft(b []byte, target netip.Addr) []byte {
	if target.Is4() {
		b = b[:wire.EthernetLen+wire.ARPLen]
		wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: wire.Broadcast, Src: a.spec.Own.MAC, EtherType: wire.EtherTypeARP})
		wire.ARP(b[wire.EthernetLen:]).Encode(&wire.ARPFields{Op: wire.ARPRequest,
			SenderMAC: a.spec.Own.MAC, SenderIP: a.spec.Own.IP4, TargetIP: target})
		return b
	}
	group := wire.SolicitedNode(target)
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: wire.MulticastMAC(group), Src: a.spec.Own.MAC, EtherType: wire.EtherTypeIPv6})
	ip := b[wire.EthernetLen:]
	wire.IPv6(ip).Encode(&wire.IPv6Fields{PayloadLen: wire.NDLen, NextHeader: wire.ProtoICMPv6, HopLimit: 255, Src: a.spec.Own.IP6, Dst: group})
	icmp := ip[wire.IPv6Len:]
	wire.NeighborSolicit(icmp).Encode(&wire.NeighborSolicitFields{Target: target, LinkLayer: a.spec.Own.MAC})
	wire.ICMPv6(icmp).UpdateChecksum(wire.PseudoHeader(ip, true, wire.ProtoICMPv6, len(icmp)))
	return b
}

// listen takes answers until the time given.
func (a *asker) listen(until time.Time) error {
	buf := make([]byte, 2048)
	for {
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		fds := []unix.PollFd{{Fd: int32(a.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for answers: %w", err)
		}
		n, _, err := unix.Recvfrom(a.fd, buf, unix.MSG_DONTWAIT)
		switch err {
		case nil:
			a.answer(buf[:n])
		case unix.EAGAIN, unix.EINTR:
		default:
			return fmt.Errorf("receive answers: %w", err)
		}
	}
}

// answer notes who answered, if the frame is an answer that is waited for.
func (a *asker) answer(frame []byte) {
	target, mac, ok := neighborAnswer(frame)
	asked, waiting := a.open[target]
	if !ok || !waiting {
		return
	}
	delete(a.open, target)
	delete(a.missed, target)
	a.result.Answered++
	a.result.Slowest = max(a.result.Slowest, time.Since(asked))
	a.result.MACs[target] = mac
}

// neighborAnswer reads an ARP reply or a neighbour advertisement.
func neighborAnswer(frame []byte) (target netip.Addr, mac wire.MAC, ok bool) {
	var p wire.Parsed
	if wire.Parse(frame, false, &p) != wire.FaultNone {
		return target, mac, false
	}
	if arp := wire.ARP(frame[p.L3:]); p.Kind == wire.KindARP {
		return arp.SenderIP(), arp.SenderMAC(), arp.Op() == wire.ARPReply
	}
	if na := wire.NeighborAdvert(frame[p.L4:p.End]); p.ND && na.IsValid() {
		mac, ok = na.LinkLayer()
		return na.Target(), mac, ok
	}
	return target, mac, false
}
