package bench

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/observe"
	"tapyard/switch/wire"
)

// attackDrops are the reasons that each attack must be dropped for, and then those that it may be.
var attackDrops = map[string][2][]string{
	"macs":  {{"spoofed_mac"}},
	"syn":   {{"syn_limit"}, {"no_route", "no_neighbor", "punt_full"}}, // about those within the limit an ICMP error is due
	"arp":   {{"bum_limit", "punt_full"}},
	"spoof": {{"spoofed_ip", "spoofed_arp", "spoofed_nd"}},
	"gso":   {{"bad_offload"}},
	"bcast": {{"bum_limit"}},
	"flood": {}, // it is the ring that overflows
}

// Whatever a pod sends at full rate: a stream between two others arrives as it was sent, a third one learns
// every address that it asks for, nobody sees what isn't for him or pretends to be from somebody else, the
// drops carry the name of what was wrong, and no frame is unaccounted for.
func TestHostilePodHarmsNobody(t *testing.T) {
	ownTempDir(t)
	s, err := prepare(Config{Executable: buildTapyard(t), Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err) // its ledger didn't balance
		}
	}()
	l, err := s.startHostileLab(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, kind := range attackKinds {
		t.Run(kind.name, func(t *testing.T) {
			before := l.dropsAtRest(t)
			requireUnharmed(t, s, l, attackSpec{Attack: kind.name, Device: podDevice, Seed: uint64(i)})
			requireReasons(t, attackDrops[kind.name], before, l.dropsAtRest(t))
		})
	}
}

// dropsAtRest waits until what an attack has left in the attacker's ring, 1000 frames, is gone.
func (l *hostileLab) dropsAtRest(t *testing.T) map[string]uint64 {
	t.Helper()
	var last map[string]uint64
	for {
		drops, err := l.attackerDrops(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if maps.Equal(drops, last) {
			return drops
		}
		last = drops
		time.Sleep(300 * time.Millisecond)
	}
}

func requireReasons(t *testing.T, want [2][]string, before, after map[string]uint64) {
	t.Helper()
	for _, reason := range want[0] {
		if after[reason] == before[reason] {
			t.Errorf("nothing was dropped for %s", reason)
		}
	}
	for reason, n := range after {
		if n -= before[reason]; n > 0 && reason != "ring" && !slices.Contains(slices.Concat(want[0], want[1]), reason) {
			t.Errorf("%d frames were dropped for %s, want %v", n, reason, want)
		}
	}
}

// hostileBytes are enough that a stream lasts some hundred milliseconds; hostileRetries are 2 s of questions,
// for the kernel gives up after 3 s (RFC 4861 section 10, three in one-second steps).
const (
	hostileBytes   = 64 << 20
	hostileRetries = 10
)

// requireUnharmed attacks while it looks at everybody else.
func requireUnharmed(t *testing.T, s *session, l *hostileLab, spec attackSpec) {
	t.Helper()
	spec = l.aim(spec)
	watch := l.watch(t)
	questions := l.questions()
	asker, err := startWorker(t.Context(), s.exe, verbAsk, questions, s.load)
	if err != nil {
		t.Fatal(err)
	}
	defer asker.abandon()
	attacker, err := startWorker(t.Context(), s.exe, verbAttack, spec, s.load)
	if err != nil {
		t.Fatal(err)
	}
	defer attacker.abandon()
	if err := errors.Join(attacker.release(), asker.release()); err != nil {
		t.Fatal(err)
	}
	requireStream(t, l)
	time.Sleep(askEvery * time.Duration(2*len(questions.Targets))) // at least twice for each
	var answers askResult
	var attack attackResult
	if err := errors.Join(asker.release(), asker.collect(&answers), attacker.release(), attacker.collect(&attack)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d frames, then %d full rings; %d of %d questions answered, the slowest after %v", attack.Sent, attack.Refused, answers.Answered, answers.Asked, answers.Slowest)
	if attack.Sent == 0 {
		t.Error("there was no attack")
	}
	requireAnswers(t, l, questions.Targets, answers)
	if err := watch(); err != nil {
		t.Error(err)
	}
}

// requireAnswers wants the right one to every question, after not too many retries.
func requireAnswers(t *testing.T, l *hostileLab, targets []netip.Addr, answers askResult) {
	t.Helper()
	if answers.Retries > hostileRetries {
		t.Errorf("a question stayed without an answer %d times in a row", answers.Retries)
	}
	victim := l.station(l.to)
	for _, target := range targets {
		want := l.gateway.MAC
		if target == victim.IP4 || target == victim.IP6 {
			want = victim.MAC
		}
		if got := answers.MACs[target]; got != want {
			t.Errorf("%s is at %s, want %s", target, got, want)
		}
	}
}

// requireStream sends random bytes from one pod to the other and compares their hashes.
func requireStream(t *testing.T, l *hostileLab) {
	t.Helper()
	in, out := l.connect(t)
	defer in.Close()
	defer out.Close()
	limit := time.Now().Add(2 * time.Minute) // for a machine that is busy with other tests; an idle one needs a second
	if err := errors.Join(in.SetDeadline(limit), out.SetDeadline(limit)); err != nil {
		t.Fatal(err)
	}
	sent, received := sha256.New(), sha256.New()
	var sending sync.WaitGroup
	sending.Go(func() {
		source := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), hostileBytes), sent)
		if _, err := io.Copy(out, source); err != nil {
			t.Errorf("send: %v", err)
		}
		out.Close()
	})
	n, err := io.Copy(received, in)
	sending.Wait()
	if err != nil || n != hostileBytes || !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		t.Errorf("received %d of %d bytes with the right hash %t: %v", n, hostileBytes, bytes.Equal(sent.Sum(nil), received.Sum(nil)), err)
	}
}

// connect opens a TCP connection between the two pods.
func (l *hostileLab) connect(t *testing.T) (in, out net.Conn) {
	t.Helper()
	from, to := l.pods()
	var listener net.Listener
	err := inNetns(to.netns, func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(to.addr, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	err = inNetns(from.netns, func() (err error) {
		out, err = net.Dial("tcp4", listener.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if in, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	return in, out
}

// watch looks at every frame that the victim gets until it is called off, and then says what was wrong.
func (l *hostileLab) watch(t *testing.T) (callOff func() error) {
	t.Helper()
	_, victim := l.pods()
	var fd int
	err := inNetns(victim.netns, func() (err error) {
		index, err := deviceIndex(podDevice)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		quiet := unix.NsecToTimeval(int64(100 * time.Millisecond))
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &quiet),
			unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: htons(unix.ETH_P_ALL)}))
	})
	if err != nil {
		t.Fatal(err)
	}
	ending := make(chan struct{})
	found := make(chan error, 1)
	go func() {
		defer unix.Close(fd)
		found <- l.look(fd, ending)
	}()
	return func() error {
		close(ending)
		return <-found
	}
}

// look reads to the end of what arrived before ending was closed.
func (l *hostileLab) look(fd int, ending chan struct{}) error {
	buf := make([]byte, 1<<17)
	frames := 0
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case err == unix.EAGAIN:
			select {
			case <-ending:
				if frames == 0 {
					return errors.New("the watch saw nothing")
				}
				return nil
			default:
				continue
			}
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		}
		if at, ok := from.(*unix.SockaddrLinklayer); ok && at.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		frames++
		if err := l.judge(buf[:n]); err != nil {
			return fmt.Errorf("the victim got %x: %w", buf[:min(n, 80)], err)
		}
	}
}

// judge says why a frame should not have reached the victim.
func (l *hostileLab) judge(b []byte) error {
	_, to := l.pods()
	var p wire.Parsed
	if fault := wire.Parse(b, true, &p); fault != wire.FaultNone {
		return fmt.Errorf("it is malformed: %s", fault)
	}
	eth := wire.Ethernet(b)
	if !eth.Dst().IsMulticast() && !bytes.Equal(b[:6], to.mac) {
		return fmt.Errorf("it is for %s", eth.Dst())
	}
	if eth.Src() == l.gateway.MAC {
		return nil // routed: the guard has looked at it where it came in
	}
	port, known := l.ports[eth.Src().String()]
	if !known {
		return fmt.Errorf("%s is nobody", eth.Src())
	}
	own := append(slices.Clone(port.Addresses), wire.LinkLocal(eth.Src()), netip.IPv6Unspecified(), netip.IPv4Unspecified())
	for _, claimed := range claims(b, &p) {
		if !slices.Contains(own, claimed) {
			return fmt.Errorf("%s claims %s, it has %v", eth.Src(), claimed, own)
		}
	}
	return nil
}

// claims lists the addresses that a frame's sender pretends to have.
func claims(b []byte, p *wire.Parsed) []netip.Addr {
	switch p.Kind {
	case wire.KindARP, wire.KindIPv4:
		return []netip.Addr{netip.AddrFrom4([4]byte(p.Src[:4]))}
	case wire.KindIPv6:
		claimed := []netip.Addr{netip.AddrFrom16(p.Src)}
		if na := wire.NeighborAdvert(b[p.L4:p.End]); p.ND && na.IsValid() {
			claimed = append(claimed, na.Target())
		}
		return claimed
	}
	return nil
}

// A watch that finds nothing wrong in wrong frames would prove nothing.
func TestTheWatchSeesWrongFrames(t *testing.T) {
	lab := twoPods(t)
	l := &hostileLab{agent: &agent{to: pod{netns: lab.Pods[1].Netns}}}
	if err := l.to.readMAC(); err != nil {
		t.Fatal(err)
	}
	var own station
	from := pod{netns: lab.Pods[0].Netns}
	if err := from.readMAC(); err != nil {
		t.Fatal(err)
	}
	copy(own.MAC[:], from.mac)
	own.IP4, own.IP6 = lab.Pods[0].Addresses[0], wire.LinkLocal(own.MAC)
	victim := station{IP4: lab.Pods[1].Addresses[0], IP6: netip.MustParseAddr("fe80::1")}
	copy(victim.MAC[:], l.to.mac)
	l.ports = map[string]observe.Port{own.MAC.String(): {Addresses: []netip.Addr{own.IP4, own.IP6}}}
	for _, kind := range []string{"macs", "spoof"} {
		frame := make([]byte, attackFrame)
		c := &crafter{spec: attackSpec{Own: own, Victim: victim, Router: station{IP4: victim.IP4, IP6: victim.IP6}}, rand: rand.New(rand.NewPCG(1, 2))}
		k, err := attackNamed(kind)
		if err != nil {
			t.Fatal(err)
		}
		next := k.frames(c)
		for i := range 8 {
			if n := next(frame); l.judge(frame[:n]) == nil {
				t.Errorf("frame %d of %s went unnoticed: %x", i, kind, frame[:n])
			}
		}
	}
}
