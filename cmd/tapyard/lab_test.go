package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/observe"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const labPeers = "/run/tapyard-lab/peers.yaml"

// status is `lab status -o json`.
type status struct {
	Nodes []struct {
		Name       string
		Underlay   []netip.Addr
		PodSubnets []netip.Prefix
	}
	Pods []struct {
		Name, Node, MAC string
		Addresses       []netip.Addr
	}
	Processes []struct {
		Name string
		PID  int
	}
}

// probe is an entry of `lab probe -o json`.
type probe struct {
	Proto  string
	Family int
	OK     bool
	Source netip.Addr
	Error  string
}

// cli is the programs as a user has them.
type cli struct {
	t   *testing.T
	dir string
}

func build(t *testing.T) *cli { return buildIn(t, t.TempDir()) }

func buildIn(t *testing.T, dir string) *cli {
	t.Helper()
	built, err := programs()
	if err == nil {
		err = os.CopyFS(dir, os.DirFS(built))
	}
	if err != nil {
		t.Fatal(err)
	}
	return &cli{t: t, dir: dir}
}

// programs builds them once, in a folder that goes with this process: /run is its own.
var programs = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("/run", "programs-"); err != nil {
		return "", err
	}
	for _, program := range []string{"tapyard", "tapyard-cni"} {
		if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, program), "tapyard/cmd/"+program).CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", program, err, out)
		}
	}
	return dir, nil
})

func (c *cli) run(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(c.dir, "tapyard"), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("tapyard %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), err
}

func (c *cli) must(args ...string) string {
	c.t.Helper()
	out, err := c.run(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *cli) status() (s status) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.must("lab", "status", "-o", "json")), &s); err != nil {
		c.t.Fatal(err)
	}
	return s
}

// probe returns what each protocol and family found; a probe that failed makes the command fail, too.
func (c *cli) probe(args ...string) (probes []probe) {
	c.t.Helper()
	out, err := c.run(append([]string{"lab", "probe", "--proto", "icmp,tcp,udp", "-o", "json"}, args...)...)
	if jsonErr := json.Unmarshal([]byte(out), &probes); jsonErr != nil {
		c.t.Fatal(errors.Join(err, jsonErr))
	}
	return probes
}

// reaches asserts that every protocol and family of families arrives with the wanted source.
func (c *cli) reaches(sources []netip.Addr, args ...string) {
	c.t.Helper()
	seen := map[string]bool{}
	for _, p := range c.probe(args...) {
		if !p.OK || !slices.Contains(sources, p.Source) {
			c.t.Errorf("%v: %s over IPv%d: ok %v, seen from %s, want one of %s %s", args, p.Proto, p.Family, p.OK, p.Source, sources, p.Error)
		}
		seen[fmt.Sprint(p.Proto, p.Family)] = true
	}
	if want := 3 * len(sources); len(seen) != want {
		c.t.Errorf("%v: probed %v, want %d combinations", args, seen, want)
	}
}

// TestLab is the product from the outside: three nodes, their pods, and what an operator does to them.
func TestLab(t *testing.T) {
	c := build(t)
	c.must("lab", "up", "--workers", "2")
	t.Cleanup(func() { _, _ = c.run("lab", "down") })
	s := c.status()
	if len(s.Nodes) != 3 || len(s.Pods) != 6 || len(s.Processes) != 5 {
		t.Fatalf("status: %+v, want 3 nodes, 6 pods, and a supervisor with 4 agents", s)
	}
	pods := map[string][]netip.Addr{}
	for _, p := range s.Pods {
		pods[p.Name] = p.Addresses
	}
	gateways := []netip.Addr{netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00:10:244:1::1")}

	t.Run("only lo, veth and tun devices", func(t *testing.T) { onlyPlainDevices(t) })
	t.Run("pods and nodes reach pods, and are seen as themselves", func(t *testing.T) {
		c := &cli{t, c.dir}
		c.reaches(pods["n1p1"], "--from", "n1p1", "--to", "n1p2")
		c.reaches(pods["n1p1"], "--from", "n1p1", "--to", "n3p2")
		c.reaches(gateways, "--from", "n1", "--to", "n2p1")
		c.reaches(gateways, "--from", "n1", "--to", "n1p2")
		for _, a := range s.Nodes[0].Underlay {
			c.reaches([]netip.Addr{a}, "--from", "n1", "--bind", a.String(), "--to", "n2p1")
		}
		c.reaches(pods["n1p1"], "--from", "n1p1", "--to", "n2")
	})
	t.Run("the world sees nodes, not pods", func(t *testing.T) {
		c := &cli{t, c.dir}
		c.reaches(s.Nodes[0].Underlay, "--from", "n1p1", "--to", "internet")
		c.reaches(s.Nodes[2].Underlay, "--from", "n3p2", "--to", "internet")
	})
	t.Run("a route that leads nowhere answers unreachable, and TTLs run out", func(t *testing.T) {
		for dst, want := range map[string]icmpError{
			"10.244.77.1":        {unix.ENETUNREACH, gateways[0]},
			"fd00:10:244:77::1":  {unix.ENETUNREACH, gateways[1]},
			"10.244.1.250":       {unix.EHOSTUNREACH, gateways[0]}, // asked of n2's pod, below: routed there
			"fd00:10:244:1::250": {unix.EHOSTUNREACH, gateways[1]},
		} {
			from := "n1p1"
			if strings.Contains(dst, "250") {
				from = "n2p1"
			}
			if got := provoke(t, from, netip.MustParseAddr(dst), 64); got.errno != want.errno || got.from != want.from {
				t.Errorf("%s to %s: %v from %s, want %v from %s", from, dst, got.errno, got.from, want.errno, want.from)
			}
		}
		for family := range 2 {
			hops := []netip.Addr{gateways[family], {}}
			hops[1] = []netip.Addr{netip.MustParseAddr("10.244.2.1"), netip.MustParseAddr("fd00:10:244:2::1")}[family]
			for ttl, hop := range hops {
				if got := provoke(t, "n1p1", pods["n2p1"][family], ttl+1); got.from != hop || got.errno != unix.EHOSTUNREACH && got.errno != unix.EXDEV {
					t.Errorf("TTL %d to n2p1: %v from %s, want time exceeded from %s", ttl+1, got.errno, got.from, hop)
				}
			}
		}
	})
	t.Run("TCP keeps its payload, and super-frames stay whole on a node", func(t *testing.T) {
		for _, to := range []string{"n1p2", "n2p1"} {
			for _, at := range pods[to] {
				transfer(t, "n1p1", to, at)
			}
		}
		var ports []observe.Port
		if err := json.Unmarshal([]byte(c.must("show", "ports", "--node", "n1", "-o", "json")), &ports); err != nil {
			t.Fatal(err)
		}
		for _, p := range ports {
			if strings.HasSuffix(p.Name, "n1p1") && p.Rx.WireFrames < 10*p.Rx.Frames {
				t.Errorf("port %s received %d frames for %d on the wire: want more than 10 each", p.Name, p.Rx.Frames, p.Rx.WireFrames)
			}
		}
	})
	t.Run("a wrong peers file is refused and a right one takes effect", func(t *testing.T) { c.reload(t, pods) })
	t.Run("kill -9 of an agent", func(t *testing.T) {
		c := &cli{t, c.dir}
		before := c.status()
		for _, p := range before.Processes {
			if strings.Contains(p.Name, "n1") {
				if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		eventually(t, "n1p1 reaches n2p1 again", func() bool {
			return all(c.probe("--from", "n1p1", "--to", "n2p1"))
		})
		after := c.status()
		if fmt.Sprint(after.Pods) != fmt.Sprint(before.Pods) {
			t.Errorf("pods after the restart: %v, before: %v", after.Pods, before.Pods)
		}
		if fmt.Sprint(after.Processes) == fmt.Sprint(before.Processes) {
			t.Error("no process was replaced: the agent was not killed")
		}
	})
	t.Run("every view is a table and JSON", func(t *testing.T) {
		c := &cli{t, c.dir}
		for _, v := range views {
			table := c.must("show", v.name, "--node", "n1")
			if strings.Count(table, "\n") < 2 && v.name != "drops" {
				t.Errorf("show %s:\n%s", v.name, table)
			}
			if out := c.must("show", v.name, "--node", "n1", "-o", "json"); !json.Valid([]byte(out)) {
				t.Errorf("show %s -o json:\n%s", v.name, out)
			}
		}
	})
	c.must("lab", "down") // fails when an agent's ledger doesn't balance
	if _, err := os.Stat("/run/tapyard-lab"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("/run/tapyard-lab after lab down: %v", err)
	}
	for _, p := range s.Processes {
		// A process that nobody has waited for yet has no program any more.
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID)); err == nil {
			t.Errorf("%s, pid %d, lives on after lab down: %s", p.Name, p.PID, exe)
		}
	}
	if left, _ := filepath.Glob("/run/netns/tapyard-*"); len(left) > 0 {
		t.Errorf("namespaces left after lab down: %v", left)
	}
}

// Somebody deletes tapyard0 under an agent, which ends and is started anew, as systemd would.
func TestHostDeviceIsDeleted(t *testing.T) {
	c := build(t)
	c.must("lab", "up", "--nodes", "2", "--pods", "1")
	t.Cleanup(func() { _, _ = c.run("lab", "down") })
	inPod(t, "n1", func() error {
		link, err := netlink.LinkByName("tapyard0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	eventually(t, "n1 reaches n2p1 again", func() bool { return all(c.probe("--from", "n1", "--to", "n2p1")) })
	if _, err := c.run("lab", "down"); err == nil || !strings.Contains(err.Error(), "tapyard0 was deleted") {
		t.Errorf("lab down, after an agent ended by itself: %v", err)
	}
}

func all(probes []probe) bool {
	for _, p := range probes {
		if !p.OK {
			return false
		}
	}
	return len(probes) > 0
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// reload changes the peers file of all nodes, as an operator does, and puts it back.
func (c *cli) reload(t *testing.T, pods map[string][]netip.Addr) {
	c = &cli{t, c.dir}
	good, err := os.ReadFile(labPeers)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(labPeers+".new", b, 0o600), os.Rename(labPeers+".new", labPeers)); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte(strings.Replace(string(good), "10.244.3.0/24", "10.244.2.0/24", 1))) // n3 claims n2's subnet
	time.Sleep(2500 * time.Millisecond)                                               // two polls of the file
	c.reaches(pods["n1p1"], "--from", "n1p1", "--to", "n3p1")

	var file map[string]any
	if err := json.Unmarshal(good, &file); err != nil {
		t.Fatal(err)
	}
	peers := file["peers"].([]any)
	file["peers"] = slices.DeleteFunc(slices.Clone(peers), func(p any) bool { return p.(map[string]any)["name"] == "n3" })
	without, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	write(without)
	eventually(t, "n3 is nobody's peer any more", func() bool { return !strings.Contains(c.must("show", "peers", "--node", "n1"), "n3") })
	if got := provoke(t, "n1p1", pods["n3p1"][0], 64); got.errno != unix.ENETUNREACH {
		t.Errorf("n3p1 without its node in the peers file: %v, want unreachable", got.errno)
	}
	write(good)
	eventually(t, "n3 is back", func() bool { return all(c.probe("--from", "n1p1", "--to", "n3p1")) })
}

func onlyPlainDevices(t *testing.T) {
	paths, err := filepath.Glob("/run/netns/tapyard-*")
	if err != nil || len(paths) < 3+6+2 {
		t.Fatalf("namespaces: %v %v", paths, err)
	}
	for _, path := range paths {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			t.Fatal(err)
		}
		h, err := netlink.NewHandleAt(ns)
		if err != nil {
			t.Fatal(err)
		}
		links, err := h.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if kind := l.Type(); l.Attrs().Name != "lo" && kind != "tuntap" && kind != "tun" && kind != "veth" {
				t.Errorf("%s: device %s of kind %s", path, l.Attrs().Name, kind)
			}
		}
		h.Close()
		ns.Close()
	}
}

// icmpError is what a socket learns from an ICMP error: the errno and who sent it.
type icmpError struct {
	errno unix.Errno
	from  netip.Addr
}

// inPod runs f on a thread in the pod's network namespace; sockets that it makes stay there.
func inPod(t *testing.T, pod string, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		ns, err := netns.GetFromName("tapyard-" + pod)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", pod, err)
	}
}

// provoke sends a datagram from a pod and returns the ICMP error that comes back, read from the kernel's
// error queue (ip(7), IP_RECVERR).
func provoke(t *testing.T, pod string, dst netip.Addr, ttl int) (got icmpError) {
	t.Helper()
	fd := -1
	inPod(t, pod, func() (err error) {
		fd, err = sendOne(dst, ttl, 1)
		return err
	})
	defer unix.Close(fd)
	return awaitError(t, fd, dst.Is4())
}

// awaitError reads the error queue of a socket; the zero value means that nothing came.
func awaitError(t *testing.T, fd int, v4 bool) (got icmpError) {
	t.Helper()
	oob := make([]byte, 512)
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 64), oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err == nil {
			return extendedError(t, oob[:n], v4)
		}
	}
	return icmpError{}
}

// transfer sends 16 MiB by TCP and compares the hash of what arrived.
func transfer(t *testing.T, from, to string, at netip.Addr) {
	t.Helper()
	var l net.Listener
	inPod(t, to, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	defer l.Close()
	received := make(chan [sha256.Size]byte, 1)
	go func() {
		h := sha256.New()
		if conn, err := l.Accept(); err == nil {
			_, _ = io.Copy(h, conn) // a short copy has another hash
			conn.Close()
		}
		received <- [sha256.Size]byte(h.Sum(nil))
	}()
	payload := make([]byte, 16<<20+1)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(payload)
	var conn net.Conn
	inPod(t, from, func() (err error) {
		conn, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
		return err
	})
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	_, err := conn.Write(payload)
	if err := errors.Join(err, conn.Close()); err != nil {
		t.Fatalf("%s to %s at %s: %v", from, to, at, err)
	}
	if <-received != sha256.Sum256(payload) {
		t.Errorf("%s to %s at %s: another payload arrived", from, to, at)
	}
}

func sendOne(dst netip.Addr, ttl, size int) (int, error) {
	if dst.Is4() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return fd, errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1), unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TTL, ttl),
			unix.Sendto(fd, make([]byte, size), 0, &unix.SockaddrInet4{Port: 33434, Addr: dst.As4()}))
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return fd, errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1), unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, ttl),
		unix.Sendto(fd, make([]byte, size), 0, &unix.SockaddrInet6{Port: 33434, Addr: dst.As16()}))
}

// extendedError decodes struct sock_extended_err (linux/errqueue.h): errno in its first 4 bytes, 16 bytes
// in all, then the sockaddr of the offender.
func extendedError(t *testing.T, oob []byte, v4 bool) icmpError {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if m.Header.Type != unix.IP_RECVERR && m.Header.Type != unix.IPV6_RECVERR {
			continue
		}
		e := icmpError{errno: unix.Errno(uint32(m.Data[0]) | uint32(m.Data[1])<<8)}
		if v4 {
			e.from = netip.AddrFrom4([4]byte(m.Data[16+4 : 16+8])) // behind family and port
		} else {
			e.from = netip.AddrFrom16([16]byte(m.Data[16+8 : 16+24])) // behind family, port and flow
		}
		return e
	}
	t.Fatal("an error without its cause")
	return icmpError{}
}

// The first 'ip netns add' of a machine mounts the folder of namespaces over itself. On one where that comes after
// 'lab up', 'lab down' removes the lab as well.
func TestLabBesideTheFirstNamespace(t *testing.T) {
	c := build(t)
	out, err := exec.Command("unshare", "--mount", "--net", "sh", "-ec", `mount -t tmpfs none /run; ip link set lo up
		`+c.dir+`/tapyard lab up --nodes 1 --pods 1; ip netns add stranger; `+c.dir+`/tapyard lab down
		[ "$(ls /run/netns)" = stranger ]; ip netns delete stranger`).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
