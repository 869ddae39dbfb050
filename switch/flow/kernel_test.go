package flow

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/wire"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// router is a namespace in which the kernel forwards between two TAPs, one per end, and tracks connections.
type router struct{ taps [2]int }

const routerScript = `set -e
sysctl -qw net.ipv4.ip_forward=1 net.netfilter.nf_conntrack_tcp_loose=1
for i in 0 1; do
  ip addr add 10.0.$i.1/24 dev t$i
  ip link set t$i address 02:00:00:00:01:0$i up
  ip neigh add 10.0.$i.2 lladdr 02:00:00:00:00:0$i dev t$i
done
nft 'add table ip t; add chain ip t f { type filter hook forward priority 0; }; add rule ip t f ct state new,established counter accept'`

func newRouter(t *testing.T) *router {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		if os.Getenv("NETNS_REQUIRED") != "" {
			t.Fatal("nft is missing: apt-get install nftables")
		}
		t.Skip("nft is missing: apt-get install nftables")
	}
	r := &router{}
	for i := range r.taps {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		req, _ := unix.NewIfreq(fmt.Sprintf("t%d", i))
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			t.Fatal(err)
		}
		r.taps[i] = fd
	}
	if out, err := exec.Command("sh", "-c", routerScript).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

// forward sends a frame into one TAP and waits until the kernel, which has then tracked it, sends it from the other.
func (r *router) forward(t *testing.T, from int, b []byte) {
	t.Helper()
	if _, err := unix.Write(r.taps[from], b); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(r.taps[1-from]), Events: unix.POLLIN}}, 100)
		n, err := unix.Read(r.taps[1-from], buf)
		if err == nil && n > 34 && buf[12] == 8 && buf[13] == 0 && buf[14+9] == wire.ProtoTCP {
			return
		}
	}
	t.Fatalf("the kernel didn't forward %x", b)
}

// state is what /proc/net/nf_conntrack says of the connection from a port, "" if it is forgotten.
func (r *router) state(t *testing.T, port uint16) string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		t.Skip(err) // a kernel without CONFIG_NF_CONNTRACK_PROCFS
	}
	m := regexp.MustCompile(fmt.Sprintf(`tcp +6 (?:\d+ )?([A-Z0-9_]+) src=10\.0\.0\.2 dst=10\.0\.1\.2 sport=%d `, port)).FindSubmatch(b)
	if m == nil {
		return ""
	}
	return string(m[1])
}

// kernelStates are ours in the kernel's words. It forgets at once what was refused, and distinguishes whether a FIN
// was acknowledged.
var kernelStates = map[State][]string{
	Opening: {"SYN_SENT"}, Answered: {"SYN_RECV", "SYN_SENT2"}, Midway: {"ESTABLISHED"}, Established: {"ESTABLISHED"},
	OpenerClosing: {"FIN_WAIT", "CLOSE_WAIT"}, AnswererClosing: {"FIN_WAIT", "CLOSE_WAIT"}, Closed: {"LAST_ACK", "TIME_WAIT"}, Reset: {"CLOSE", ""},
}

// Linux' connection tracking, which is between two namespaces' TAPs, sees the same segments as ours. In a sequence,
// a capital is from the opener: S SYN, Y SYN|ACK, A ACK, F FIN|ACK, R RST|ACK.
func TestStatesAreThoseOfLinux(t *testing.T) {
	r := newRouter(t)
	for i, sequence := range strings.Fields("SyAaFafA SyAafAFa SyAFfAa SyAr SyAR Sr SsYyAa SSyyAAaa AaFafA AAaA AaR SyAFafAS SyFafA SyARS SyAaSAs SyAafFA") {
		c := talk{1, wire.ProtoTCP, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(2000+i)), netip.MustParseAddrPort("10.0.1.2:80")}
		table, next := New(16, 1), [2]uint32{1000, 9000} // sequence numbers, by side
		for n, letter := range sequence {
			side := 0
			if letter >= 'a' {
				side, letter = 1, letter-'a'+'A'
			}
			b := segment(t, c, side, letter, &next)
			h := heard{vni: 1, bytes: b}
			if fault := wire.Parse(b, false, &h.p); fault != wire.FaultNone {
				t.Fatal(fault)
			}
			track(table, 100, nobody, h)
			r.forward(t, side, b)
			ours := table.Entries(100e9, 10, all)
			if len(ours) != 1 {
				t.Fatalf("%s: %+v", sequence[:n+1], ours)
			}
			if kernel := r.state(t, c.from.Port()); !slices.Contains(kernelStates[ours[0].State], kernel) {
				t.Errorf("%s: %s, Linux says %q", sequence[:n+1], ours[0].State, kernel)
			}
		}
	}
}

// segment is a segment whose sequence numbers are right.
func segment(t *testing.T, c talk, side int, letter rune, next *[2]uint32) []byte {
	src, dst := c.from, c.to
	if side == 1 {
		src, dst = dst, src
	}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), Seq: next[side], Window: 60000,
		SYN: letter == 'S' || letter == 'Y', ACK: letter != 'S', FIN: letter == 'F', RST: letter == 'R'}
	initial := [2]uint32{1000, 9000}[side]
	switch {
	case tcp.SYN:
		tcp.Seq = initial
		next[side] = max(next[side], initial+1)
	case tcp.FIN:
		next[side]++
	}
	if tcp.ACK {
		tcp.Ack = next[1-side]
	}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, byte(side)}, DstMAC: []byte{2, 0, 0, 0, 1, byte(side)}, EthernetType: layers.EthernetTypeIPv4}, ip, tcp); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
