package vswitch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"tapyard/encap"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// edge is a case of testdata/edges.py: a frame with the reason that it must be dropped for, or where it must
// arrive as what.
type edge struct {
	Name, Port, Hex  string
	Reason, To, Want string
	Meta             struct {
		GSO           uint8
		Csum          bool
		Size          uint16
		Start, Offset uint16
		VNI           *uint32
	}
}

// frame is the frame as its port receives it.
func (e *edge) frame(t *testing.T) porttest.Frame {
	m := frame.Meta{VNI: testVNI, GSOType: e.Meta.GSO, NeedsCsum: e.Meta.Csum, GSOSize: e.Meta.Size,
		CsumStart: e.Meta.Start, CsumOffset: e.Meta.Offset}
	if e.Meta.VNI != nil {
		m.VNI = *e.Meta.VNI
	}
	if e.Port == "tunnel" {
		m.Peer = remotePeer
	}
	return porttest.Frame{Bytes: fromHex(t, e.Hex), Meta: m}
}

func fromHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// scapy names a Python that has scapy; Debian's python3-scapy belongs to /usr/bin/python3 alone.
func scapy(t *testing.T) string {
	t.Helper()
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(python, "-c", "import scapy").Run() == nil {
			return python
		}
	}
	if os.Getenv("NETNS_REQUIRED") == "1" {
		t.Fatal("no python3 with scapy: apt install python3-scapy")
	}
	t.Skip("no python3 with scapy: apt install python3-scapy")
	return ""
}

// edges runs the script once for all tests.
func edges(t *testing.T) []edge {
	t.Helper()
	python := scapy(t)
	list, err := readEdges(python)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

var readEdges = func() func(string) ([]edge, error) {
	var once sync.Once
	var list []edge
	var err error
	return func(python string) ([]edge, error) {
		once.Do(func() { list, err = runScapy(python) })
		return list, err
	}
}()

func runScapy(python string) (list []edge, err error) {
	out, err := exec.Command(python, "testdata/edges.py").Output()
	if err != nil {
		return nil, fmt.Errorf("edges.py: %w: %s", err, stderrOf(err))
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20) // the longest frames are 65,549 bytes, twice in hex
	for lines.Scan() {
		var e edge
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("edges.py: %w in %.200s", err, lines.Bytes())
		}
		list = append(list, e)
	}
	return list, lines.Err()
}

func stderrOf(err error) []byte {
	if e, ok := err.(*exec.ExitError); ok {
		return e.Stderr
	}
	return nil
}

func (r *rig) named(name string) *porttest.Port {
	return map[string]*porttest.Port{"pod": r.podA, "pod_b": r.podB, "host": r.host, "tunnel": r.tunnel}[name]
}

// newEdgeRig is a rig whose pod a is held to what it was given, as the agent holds every pod.
func newEdgeRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, port.CapsAll)
	before := r.ids[r.podA]
	r.must(r.sw.Detach(context.Background(), before))
	addrs := []netip.Addr{a4, a6}
	r.attach(r.podA, PortConfig{Role: RoleAccess, VNI: testVNI, BUM: DefaultBUM, SYN: DefaultSYN, Guard: &Station{macA, addrs}})
	if r.ids[r.podA] != before {
		t.Fatalf("pod a came back as port %d, its routes lead to %d", r.ids[r.podA], before)
	}
	r.must(r.sw.AddStation(testVNI, before, macA, addrs))
	for len(r.sw.slow.arrivals) > 0 {
		<-r.sw.slow.arrivals
	}
	return r
}

// Each frame that scapy has spoiled is dropped, once, for the reason that names what is wrong with it.
func TestScapyFramesAreDroppedForTheirReason(t *testing.T) {
	for _, e := range edges(t) {
		if e.Reason == "" {
			continue
		}
		t.Run(e.Reason+"/"+e.Name, func(t *testing.T) {
			r := newEdgeRig(t)
			in := r.named(e.Port)
			r.run(in, e.frame(t))
			if got := r.drops(in); !maps.Equal(got, map[string]uint64{e.Reason: 1}) {
				t.Errorf("drops %v, want one %s", got, e.Reason)
			}
			if n := len(r.podB.Sent()); n != 0 {
				t.Errorf("pod b got %d frames", n)
			}
		})
	}
}

// Each legal frame arrives where it is for and nowhere else, as scapy says that it looks one hop later.
func TestScapyFramesArrive(t *testing.T) {
	for _, e := range edges(t) {
		if e.Reason != "" {
			continue
		}
		t.Run(e.To+"/"+e.Name, func(t *testing.T) {
			r := newEdgeRig(t)
			r.run(r.named(e.Port), e.frame(t))
			if got := r.drops(r.named(e.Port)); len(got) != 0 {
				t.Errorf("drops %v, want none", got)
			}
			for _, name := range []string{"pod", "pod_b", "host", "tunnel"} {
				var want [][]byte
				if name == e.To {
					want = [][]byte{fromHex(t, e.Want)}
				}
				requireSent(t, name, r.named(name), want)
			}
		})
	}
}

func requireSent(t *testing.T, name string, p *porttest.Port, want [][]byte) {
	t.Helper()
	sent := p.Sent()
	if len(sent) != len(want) {
		t.Errorf("%s got %d frames, want %d", name, len(sent), len(want))
		return
	}
	for i, f := range sent {
		if !bytes.Equal(f.Bytes, want[i]) {
			t.Errorf("%s got\n%.400x, want\n%.400x", name, f.Bytes, want[i])
		}
	}
}

// beyondFrames are the reasons that no single frame has: the state of the switch or the kernel decides. Each
// function returns what was dropped.
var beyondFrames = map[drop.Reason]func(*testing.T) map[string]uint64{
	drop.NotVXLAN: func(t *testing.T) map[string]uint64 {
		u := newUnderlay(t)
		u.send("127.0.0.2", 0, []byte("GET / HTTP/1.0"))
		return u.drops()
	},
	drop.UnknownPeer: func(t *testing.T) map[string]uint64 {
		u := newUnderlay(t)
		u.send("127.0.0.3", 0, vxlan(udp(t, peerMAC, routerMAC, remote4, b4, 64, "x")))
		return u.drops()
	},
	drop.ECNNotCapable: func(t *testing.T) map[string]uint64 {
		u := newUnderlay(t)
		u.send("127.0.0.2", 3, vxlan(udp(t, peerMAC, routerMAC, remote4, b4, 64, "x"))) // CE outside, Not-ECT inside
		return u.drops()
	},
	drop.SliceLost: func(t *testing.T) map[string]uint64 {
		u := newUnderlay(t)
		u.send("127.0.0.2", 0, []byte{0x51, 0, 1, 1, 0, 0, testVNI, 1, 'x'}) // the second of two
		return u.drops()
	},
	drop.BadBundle: func(t *testing.T) map[string]uint64 {
		u := newUnderlay(t)
		u.send("127.0.0.2", 0, []byte{0x53, 0, 0, 0, 0, 0, testVNI, 0, 0, 15, 'x'}) // one byte of 15
		return u.drops()
	},
	drop.BUMLimit: func(t *testing.T) map[string]uint64 {
		r := newEdgeRig(t)
		storm := make([]porttest.Frame, frame.BurstSize)
		for i := range storm {
			storm[i] = plain(udp(t, macA, wire.Broadcast, a4, ip("10.244.1.255"), 64, "x"))
		}
		for range DefaultBUM/len(storm) + 2 {
			r.run(r.podA, storm...)
		}
		return r.drops(r.podA)
	},
	drop.SYNLimit: func(t *testing.T) map[string]uint64 {
		r := newEdgeRig(t)
		storm := make([]porttest.Frame, frame.BurstSize)
		for i := range storm {
			storm[i] = plain(packet(t, ethernet(macA, macB, layers.EthernetTypeIPv4),
				&layers.IPv4{TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: a4.AsSlice(), DstIP: b4.AsSlice()},
				&layers.TCP{SrcPort: layers.TCPPort(i), DstPort: 80, SYN: true}))
		}
		for range 2 * DefaultSYN / len(storm) { // twice a second's, in less than a second
			r.run(r.podA, storm...)
		}
		return r.drops(r.podA)
	},
	drop.BandwidthEgress: func(t *testing.T) map[string]uint64 {
		r := newEdgeRig(t)
		r.sw.snapshot.Load().port(r.ids[r.podA]).sent = newMeter(Rate{Bits: 8, Burst: 8})
		one := plain(udp(t, macA, macB, a4, b4, 64, "x"))
		r.run(r.podA, one, one)
		return r.drops(r.podA)
	},
	drop.BandwidthIngress: func(t *testing.T) map[string]uint64 {
		r := newEdgeRig(t)
		r.sw.snapshot.Load().port(r.ids[r.podB]).received = newMeter(Rate{Bits: 8, Burst: 8})
		one := plain(udp(t, macA, macB, a4, b4, 64, "x"))
		r.run(r.podA, one, one)
		return r.drops(r.podB)
	},
	drop.NoFloodTarget: func(t *testing.T) map[string]uint64 {
		r := newEdgeRig(t)
		r.must(r.sw.Detach(context.Background(), r.ids[r.podB]))
		r.run(r.podA, plain(udp(t, macA, wire.Broadcast, a4, ip("10.244.1.255"), 64, "x")))
		return r.drops(r.podA)
	},
	drop.PuntFull: func(t *testing.T) map[string]uint64 {
		r := newEdgeRig(t)
		var storm []porttest.Frame
		for range punts + 1 { // the slow path is idle until the last of them is in
			storm = append(storm, plain(udp(t, macA, routerMAC, a4, nowhere4, 64, "x")))
		}
		r.run(r.podA, storm...)
		return r.drops(r.podA)
	},
	drop.PortGone: func(t *testing.T) map[string]uint64 {
		r := newEdgeRig(t)
		r.must(r.sw.Detach(context.Background(), r.ids[r.podB]))
		r.run(r.podA, plain(udp(t, macA, routerMAC, a4, b4, 64, "x"))) // the route is still there
		return r.drops(r.podA)
	},
	drop.TxFull:  func(t *testing.T) map[string]uint64 { return refusedBy(t, drop.TxFull) },
	drop.TxError: func(t *testing.T) map[string]uint64 { return refusedBy(t, drop.TxError) },
	drop.NoBuffer: func(t *testing.T) map[string]uint64 {
		r := newEdgeRig(t)
		r.attach(porttest.New("c", port.CapsAll), PortConfig{Role: RoleAccess, VNI: testVNI})
		r.sw.workers[0].pool = frame.NewPool(1, frame.DefaultArena) // the frame itself takes the only one
		r.run(r.podA, plain(udp(t, macA, wire.Broadcast, a4, ip("10.244.1.255"), 64, "x")))
		return r.drops(r.podA)
	},
}

// refusedBy is what a device does to a frame; those of the kernel are told apart in switch/port and encap.
func refusedBy(t *testing.T, reason drop.Reason) map[string]uint64 {
	r := newEdgeRig(t)
	r.podB.Refuse(reason)
	r.run(r.podA, plain(udp(t, macA, macB, a4, b4, 64, "x")))
	return r.drops(r.podB)
}

// elsewhere are the reasons that no frame reaches through the switch, with the file and name of their test.
var elsewhere = map[drop.Reason][2]string{
	drop.ShortRead: {"port/short_read_test.go", "TestShortRead"},
}

// A reason that nothing provokes is either dead, or untested.
func TestEveryReasonIsReached(t *testing.T) {
	reached := map[string]bool{}
	for _, e := range edges(t) {
		reached[e.Reason] = true
	}
	for reason, provoke := range beyondFrames {
		t.Run(reason.String(), func(t *testing.T) {
			got := provoke(t)
			reached[reason.String()] = got[reason.String()] > 0
			for name, n := range got {
				if name != reason.String() && !(reason == drop.PuntFull && name == "no_route") {
					t.Errorf("%d dropped for %s, want %s only", n, name, reason)
				}
			}
		})
	}
	for reason, test := range elsewhere {
		source, err := os.ReadFile(test[0])
		reached[reason.String()] = err == nil && strings.Contains(string(source), "func "+test[1]+"(")
	}
	for reason := drop.None + 1; reason < drop.Count; reason++ {
		if !reached[reason.String()] {
			t.Errorf("%s was not reached: %s", reason, reason.Explain())
		}
	}
}

// underlay is a rig with a real tunnel at 127.0.0.1 beside the one in memory; its peer is 127.0.0.2.
type underlay struct {
	*rig
	tunnel *encap.Tunnel
	id     port.ID
	at     *net.UDPAddr
}

func newUnderlay(t *testing.T) *underlay {
	t.Helper()
	u := &underlay{rig: newEdgeRig(t), at: freePort(t)}
	peers := new(encap.VTEPTable)
	u.must(peers.Set([]encap.Peer{{Name: "peer", Underlay: ip("127.0.0.2"), MAC: peerMAC}}))
	var err error
	u.tunnel, err = encap.Open(encap.Config{Name: "real", Local: ip("127.0.0.1"), Port: uint16(u.at.Port), Workers: 1, Peers: peers})
	u.must(err)
	t.Cleanup(func() { u.must(u.tunnel.Close()) })
	u.id, err = u.sw.Attach(u.tunnel, PortConfig{Role: RoleTunnel})
	u.must(err)
	return u
}

// freePort is a UDP port of 127.0.0.1 that was free a moment ago.
func freePort(t *testing.T) *net.UDPAddr {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr)
}

// send sends a datagram to the tunnel with the given type of service, and has the worker receive it.
func (u *underlay) send(from string, tos int, datagram []byte) {
	u.t.Helper()
	c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, u.at)
	u.must(err)
	defer c.Close()
	raw, err := c.SyscallConn()
	u.must(err)
	u.must(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos) }))
	u.must(err)
	_, err = c.Write(datagram)
	u.must(err)
	fds := []unix.PollFd{{Fd: int32(u.tunnel.Rx()[0].FD()), Events: unix.POLLIN}}
	for n := 0; n == 0; {
		if n, err = unix.Poll(fds, int((10 * time.Second).Milliseconds())); err != unix.EINTR {
			u.must(err)
		}
	}
	w := u.sw.workers[0]
	w.reader.Online()
	w.pass(eventOf(u.id))
	w.reader.Offline()
	w.live.Store(int64(w.pool.Live()))
}

func (u *underlay) drops() map[string]uint64 { return u.dropsOf(u.id) }

// vxlan puts the header of RFC 7348 section 5 before a frame.
func vxlan(inner []byte) []byte {
	return append([]byte{0x08, 0, 0, 0, 0, 0, testVNI, 0}, inner...)
}
