package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
)

// probePeriod is what lies between two datagrams of a probe.
const probePeriod = time.Millisecond

// probePair is a pair of pods with 1,000 numbered datagrams a second and a TCP stream between them.
type probePair struct {
	name     string
	out, in  *net.UDPConn
	tcpOut   net.Conn
	tcpIn    net.Conn
	sent     uint64
	arrivals []arrivalOf
	tcpSent  int64
	tcpRead  int64
	errs     []error // of the stream
}

// arrivalOf says when a datagram came.
type arrivalOf struct {
	number uint64
	at     time.Time
}

// talk starts the pair's traffic, which ends when stop is closed; wait returns when all has arrived or is lost.
func talk(t *testing.T, name string, from, to *nstest.NS, at netip.Addr, stop <-chan struct{}) (p *probePair, wait func()) {
	t.Helper()
	p = &probePair{name: name}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	addr := netip.AddrPortFrom(at, 7000)
	var l net.Listener
	to.Do(t, func() {
		var err error
		p.in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		must(err)
		must(p.in.SetReadBuffer(4 << 20)) // this process, too, may be away
		l, err = net.Listen("tcp", addr.String())
		must(err)
	})
	defer l.Close()
	from.Do(t, func() {
		var err error
		p.out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
		must(err)
		p.tcpOut, err = net.Dial("tcp", addr.String())
		must(err)
	})
	var err error
	p.tcpIn, err = l.Accept()
	must(err)
	var sending, receiving sync.WaitGroup
	sending.Go(func() { p.send(stop) })
	sending.Go(func() { p.stream(stop) })
	receiving.Go(p.receive)
	receiving.Go(p.read)
	return p, func() {
		sending.Wait()
		time.Sleep(500 * time.Millisecond)
		p.in.Close()
		p.out.Close()
		p.tcpIn.SetDeadline(time.Now().Add(5 * time.Second))
		receiving.Wait()
		p.tcpIn.Close()
		p.tcpOut.Close()
	}
}

// paced calls f once per period until stop, late ones at once.
func paced(stop <-chan struct{}, f func() bool) {
	start := time.Now()
	for n := 1; ; n++ {
		select {
		case <-stop:
			return
		case <-time.After(time.Until(start.Add(time.Duration(n) * probePeriod))):
		}
		if !f() {
			return
		}
	}
}

func (p *probePair) send(stop <-chan struct{}) {
	var b [8]byte
	paced(stop, func() bool {
		binary.BigEndian.PutUint64(b[:], p.sent)
		if _, err := p.out.Write(b[:]); err == nil { // an error is an ICMP message's: the datagram wasn't sent
			p.sent++
		}
		return true
	})
}

func (p *probePair) receive() {
	b := make([]byte, 64)
	for {
		n, err := p.in.Read(b)
		if err != nil {
			return
		}
		if n == 8 {
			p.arrivals = append(p.arrivals, arrivalOf{binary.BigEndian.Uint64(b), time.Now()})
		}
	}
}

func (p *probePair) stream(stop <-chan struct{}) {
	b := make([]byte, 1000)
	paced(stop, func() bool {
		for i := range b {
			b[i] = byte((p.tcpSent + int64(i)) % 251)
		}
		n, err := p.tcpOut.Write(b)
		p.tcpSent += int64(n)
		if err != nil {
			p.errs = append(p.errs, err)
		}
		return err == nil
	})
	p.tcpOut.(*net.TCPConn).CloseWrite()
}

func (p *probePair) read() {
	b := make([]byte, 64<<10)
	for {
		n, err := p.tcpIn.Read(b)
		for i := range b[:n] {
			if b[i] != byte((p.tcpRead+int64(i))%251) {
				p.errs = append(p.errs, fmt.Errorf("byte %d is wrong", p.tcpRead+int64(i)))
				return
			}
		}
		p.tcpRead += int64(n)
		if err == io.EOF {
			return
		}
		if err != nil {
			p.errs = append(p.errs, err)
			return
		}
	}
}

// queued is how many datagrams a device surely holds while no agent reads it: its ring has room for 1,000 frames, and of
// those that come in a millisecond one is the stream's, as long as that has a window.
const queued = 400

// lost returns how many datagrams never came, how many of those found a ring full, and how many came twice. Before one that
// found it full, as many as it holds had waited in it for the agent, so they came at once, though sent one a millisecond.
func (p *probePair) lost() (lost, full, twice int) {
	at := make([]time.Time, p.sent)
	for _, a := range p.arrivals {
		if !at[a.number].IsZero() {
			twice++
		}
		at[a.number] = a.at
	}
	var before []time.Time // when those arrived that did
	for _, a := range at {
		if !a.IsZero() {
			before = append(before, a)
			continue
		}
		lost++
		if n := len(before); n >= queued && before[n-1].Sub(before[n-queued]) < queued*probePeriod*3/4 {
			full++
		}
	}
	return lost, full, twice
}

// gap returns the longest silence that ended in the time.
func (p *probePair) gap(from, to time.Time) (longest time.Duration) {
	for i := 1; i < len(p.arrivals); i++ {
		if at := p.arrivals[i].at; at.After(from) && at.Before(to) {
			longest = max(longest, at.Sub(p.arrivals[i-1].at))
		}
	}
	return longest
}

// rounds is how often something is repeated: in 'make test-long' as often as is promised.
func rounds() int {
	if os.Getenv("TAPYARD_LONG") == "1" {
		return 20
	}
	return 3
}

// Over restarts, kills and upgrades no frame is lost and no connection breaks, between pods of a node and of two. A frame
// that a killed process had in its hands is: at most one of each probe's per kill. On a machine that is busy otherwise,
// PID 1 and the new process may take longer than a ring has room for.
func TestServiceRestartsUnnoticed(t *testing.T) {
	for _, portType := range []string{"tap", "veth"} {
		t.Run(portType, func(t *testing.T) {
			s := startService(t, "flows: true\nportType: "+portType+"\n")
			at := map[string]netip.Addr{}
			for _, pod := range []string{"a", "b", "c", "d"} { // each sends to one other: a ring has room for 1,000 frames
				at[pod] = s.attach(pod, false)
			}
			for _, pod := range []string{"far1", "far2"} {
				at[pod] = s.attach(pod, true)
			}
			builds := s.twoBuilds()
			for _, way := range []struct {
				name  string
				again func(round int)
				kills int // frames of a probe that each may cost
			}{
				{"restart", func(int) { s.ctl("restart", "tapyard") }, 0},
				{"kill", func(int) { s.sdKill("SIGKILL") }, 1},
				{"upgrade", func(round int) { s.upgrade(builds[round%2]) }, 0},
			} {
				t.Run(way.name, func(t *testing.T) {
					stop := make(chan struct{})
					var pairs []*probePair
					var waits []func()
					for _, p := range []struct{ name, from, to string }{
						{"same node", "a", "b"}, {"to the far node", "c", "far1"}, {"from the far node", "far2", "d"},
					} {
						pair, wait := talk(t, p.name, s.pods[p.from], s.pods[p.to], at[p.to], stop)
						pairs, waits = append(pairs, pair), append(waits, wait)
					}
					var times []time.Time
					time.Sleep(200 * time.Millisecond)
					for round := range rounds() {
						times = append(times, time.Now())
						before := s.show("MainPID")
						way.again(round)
						s.restarted(before)
						time.Sleep(500 * time.Millisecond)
					}
					times = append(times, time.Now())
					close(stop)
					for _, wait := range waits {
						wait()
					}
					for _, p := range pairs {
						var gaps []time.Duration
						for i := range len(times) - 1 {
							gaps = append(gaps, p.gap(times[i], times[i+1]).Round(time.Millisecond))
						}
						slices.Sort(gaps)
						lost, full, twice := p.lost()
						t.Logf("%s, %s: %d sent, %d lost, of which %d found a ring full; gaps %v median, %v to %v quartiles, %v longest", way.name, p.name,
							p.sent, lost, full, gaps[len(gaps)/2], gaps[len(gaps)/4], gaps[3*len(gaps)/4], gaps[len(gaps)-1])
						if lost-full > way.kills*rounds() || twice > 0 || p.sent < 1000 {
							t.Errorf("%s: %d of %d datagrams lost, of which %d found a ring full; %d came twice", p.name, lost, p.sent, full, twice)
						}
						if len(p.errs) > 0 || p.tcpRead != p.tcpSent || p.tcpSent == 0 {
							t.Errorf("%s: the stream broke: %v, %d of %d bytes", p.name, p.errs, p.tcpRead, p.tcpSent)
						}
					}
				})
			}
			s.noWarnings()
		})
	}
}

// twoBuilds returns the program as it is, and as another build.
func (s *service) twoBuilds() [2]string {
	s.t.Helper()
	other := filepath.Join(s.cli.dir, "tapyard-other")
	if out, err := exec.Command("go", "build", "-ldflags=-s", "-o", other, "tapyard/cmd/tapyard").CombinedOutput(); err != nil {
		s.t.Fatalf("build: %v: %s", err, out)
	}
	return [2]string{other, filepath.Join(s.cli.dir, "tapyard")}
}

// upgrade puts another build in the place of the running one.
func (s *service) upgrade(program string) {
	s.t.Helper()
	at := s.sd.Path("/usr/local/bin/tapyard")
	sh(s.t, fmt.Sprintf("cp %s %s.new", program, at))
	if err := unix.Rename(at+".new", at); err != nil {
		s.t.Fatal(err)
	}
	s.ctl("restart", "tapyard")
}
