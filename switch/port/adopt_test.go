package port

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/frame"
)

// fdsOf are duplicates, as a service manager has them.
func fdsOf(t *testing.T, p *pod) (dups []int) {
	t.Helper()
	for _, fd := range p.port.(interface{ FDs() []int }).FDs() {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		check(t, err)
		dups = append(dups, d)
	}
	return dups
}

// What a pod sends while nobody reads is there for the one that adopts its descriptors.
func TestFramesWaitForTheSuccessor(t *testing.T) {
	for name, adopt := range map[string]func(p *pod, fds []int) (Port, error){
		"tap": func(p *pod, fds []int) (Port, error) {
			return AdoptTAP(TAPConfig{PortName: "p"}, netnsIn(t, p), fds)
		},
		"veth": func(p *pod, fds []int) (Port, error) {
			return AdoptPacket(PacketConfig{Device: hostEnd(2), PortName: "p"}, fds)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := map[string]func() *pod{"tap": func() *pod { return newPod(t, 2) }, "veth": func() *pod { return newVethPod(t, 2) }}[name]()
			kept := fdsOf(t, p)
			check(t, p.port.Close())
			p.ns.Do(t, func() {
				link := eth0(t)
				if link.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
					t.Error("the device has lost its carrier")
				}
				sock := p.listen(t, podIPv4(2), 9)
				defer sock.Close()
				for i := range 100 {
					_, err := sock.WriteToUDP(fmt.Appendf(nil, "while you were away %d", i), udpAddr(podIPv4(1), 9))
					check(t, err)
				}
			})
			port, err := adopt(p, kept)
			check(t, err)
			p.port, p.tx = port, port.Tx(0, &p.st)
			if tap, is := port.(*TAP); is {
				p.tap = tap
			}
			for i := 0; i < 100; {
				b := p.recv(t, patience)
				if b.Len() == 0 {
					t.Fatalf("%d of 100 frames", i)
				}
				for _, f := range b.Frames() {
					if want := fmt.Sprintf("while you were away %d", i); strings.HasSuffix(string(f.Bytes()), want) {
						i++
					} else if strings.Contains(string(f.Bytes()), "while") {
						t.Fatalf("frame % x, want %q", f.Bytes(), want)
					}
				}
				b.Release()
			}
			sink := p.listen(t, podIPv4(2), 7)
			p.send(t, frame.Meta{}, udpFrame([]byte("and back")))
			expectDatagrams(t, sink, []byte("and back"), 100)
		})
	}
}

// A descriptor of another device, or of one that is gone, must not become the pod's.
func TestAdoptRefuses(t *testing.T) {
	one, two, veth := newPod(t, 2), newPod(t, 3), newVethPod(t, 4)
	gone := fdsOf(t, two)
	own := fdsOf(t, one)
	adopt := func(p *pod, device string, fds []int) error {
		_, err := AdoptTAP(TAPConfig{Device: device, PortName: "p"}, netnsIn(t, p), fds)
		return err
	}
	for want, err := range map[string]error{
		"is that of eth0":                       adopt(one, "eth1", own),
		"in another network namespace":          adopt(two, "eth0", own),
		"2 descriptors":                         adopt(one, "eth0", append(fdsOf(t, one), own...)),
		"TUNGETIFF":                             adopt(one, "eth0", fdsOf(t, veth)),
		"getsockname":                           func() error { _, err := AdoptPacket(PacketConfig{Device: hostEnd(4)}, own); return err }(),
		"0 descriptors, want those of 1 queues": adopt(one, "eth0", nil),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	_, err := two.tap.Delete()
	check(t, err)
	two.ns.Do(t, func() {
		var missing netlink.LinkNotFoundError
		if _, err := netlink.LinkByName("eth0"); !errors.As(err, &missing) {
			t.Errorf("after Delete, with a descriptor still open: %v, want that there is no eth0", err)
		}
	})
	if err := adopt(two, "eth0", gone); !errors.Is(err, unix.EBADFD) {
		t.Errorf("a deleted device's descriptor: %v", err)
	}
}

func netnsIn(t *testing.T, p *pod) (ns Netns) {
	t.Helper()
	var err error
	p.ns.Do(t, func() { ns, err = OwnNetns() })
	check(t, err)
	return ns
}

func udpAddr(a netip.Addr, port uint16) *net.UDPAddr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port))
}
