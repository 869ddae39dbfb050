package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tapyard/bench/nstest"
	"tapyard/switch/observe"
)

// longEnv is set by `make test-long`.
const longEnv = "TAPYARD_LONG"

// kept is a connection between two pods: a number each 10 ms and its echo, as datagrams and as a stream.
type kept struct {
	name        string
	udp, echo   *net.UDPConn
	out, in     *net.TCPConn
	mu          sync.Mutex
	last        time.Time     // when the last answer came
	gap         time.Duration // the longest silence before an answer, since it was reset
	sent, taken uint64        // numbers of the stream
	broken      error
}

// connect opens a connection's sockets in the pods.
func connect(t *testing.T, name string, from, to *nstest.NS, addr string) *kept {
	t.Helper()
	k := &kept{name: name, last: time.Now()}
	var l *net.TCPListener
	var err error
	to.Do(t, func() {
		if k.echo, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(addr), Port: 5003}); err == nil {
			l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.ParseIP(addr), Port: 5003})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from.Do(t, func() {
		if k.udp, err = net.DialUDP("udp4", nil, k.echo.LocalAddr().(*net.UDPAddr)); err == nil {
			k.out, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
		}
	})
	if err == nil {
		k.in, err = l.AcceptTCP()
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return k
}

// talk goes on until the context ends, and then until the stream has arrived.
func (k *kept) talk(ctx context.Context) {
	var running sync.WaitGroup
	running.Go(k.answer)
	running.Go(k.listen)
	running.Go(k.take)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var number [8]byte
	for ctx.Err() == nil {
		<-tick.C
		k.udp.Write(number[:]) // what is lost shows as a gap
		binary.BigEndian.PutUint64(number[:], k.sent)
		if _, err := k.out.Write(number[:]); err != nil {
			k.fail(err)
			break
		}
		k.sent++
	}
	k.out.CloseWrite()
	k.in.SetReadDeadline(time.Now().Add(20 * time.Second))
	k.udp.Close()
	k.echo.Close()
	running.Wait()
	k.out.Close()
	k.in.Close()
}

func (k *kept) answer() {
	buf := make([]byte, 64)
	for {
		n, from, err := k.echo.ReadFromUDP(buf)
		if err != nil {
			return
		}
		k.echo.WriteToUDP(buf[:n], from)
	}
}

func (k *kept) listen() {
	buf := make([]byte, 64)
	for {
		_, err := k.udp.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else an ICMP error, which shows as a gap
			k.mu.Lock()
			now := time.Now()
			k.gap, k.last = max(k.gap, now.Sub(k.last)), now
			k.mu.Unlock()
		}
	}
}

// take reads the stream, in which every number comes once and in order.
func (k *kept) take() {
	var number [8]byte
	for {
		if _, err := io.ReadFull(k.in, number[:]); err != nil {
			if err != io.EOF {
				k.fail(err)
			}
			return
		}
		if got := binary.BigEndian.Uint64(number[:]); got != k.taken {
			k.fail(fmt.Errorf("number %d came as %d", k.taken, got))
			return
		}
		k.taken++
	}
}

func (k *kept) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.broken = cmp.Or(k.broken, err)
}

// answeredSince says whether there was an answer; its longest gap counts anew then.
func (k *kept) answeredSince(at time.Time) (gap time.Duration, answered bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last.Before(at) {
		return 0, false
	}
	gap, k.gap = k.gap, 0
	return gap, true
}

// An agent that is killed again and again, and started anew by nobody but this test: all its pods are back, those
// that talk go on talking, and nothing piles up.
func TestKillsKeepPods(t *testing.T) {
	kills, pods, limit := 3, 10, 10*time.Second
	if os.Getenv(longEnv) != "" {
		kills, pods, limit = 100, 50, time.Second
	}
	n := install(t)
	clean := n.traces()
	agent := n.spawn()
	n.awaitReady()
	addrs := make([]string, pods)
	nss := make([]*nstest.NS, pods)
	for i := range pods {
		nss[i] = nstest.New(t)
		addrs[i] = n.attach(nss[i], fmt.Sprint("c", i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var talking sync.WaitGroup
	var all []*kept
	for i := range pods {
		next := (i + 1) % pods
		k := connect(t, fmt.Sprintf("c%d to c%d", i, next), nss[i], nss[next], addrs[next])
		all = append(all, k)
		talking.Go(func() { k.talk(ctx) })
	}
	awaitAnswers(t, all, time.Now(), limit)
	before := n.possessions(agent)
	var gaps []time.Duration
	for disturbed := 0; len(gaps) < kills; {
		killed, busy := time.Now(), othersTime(t, agent)
		agent.Process.Kill()
		agent.Wait()
		agent = n.spawn()
		gap := awaitAnswers(t, all, time.Now(), limit)
		others := float64(othersTime(t, agent)-busy) / float64(time.Since(killed)) / float64(runtime.NumCPU())
		switch {
		case gap <= limit:
			gaps = append(gaps, gap)
		case others > 0.2 && disturbed < kills:
			t.Logf("%v of silence, while others took %.0f %% of the machine: doesn't count", gap, 100*others)
			disturbed++
		default:
			gaps = append(gaps, gap)
			t.Errorf("kill %d: %v of silence, while others took %.0f %% of the machine", len(gaps), gap, 100*others)
		}
		time.Sleep(max(time.Until(killed.Add(time.Second)), gap)) // TCP sends again what was lost: after as long again at the latest
	}
	slices.Sort(gaps)
	t.Logf("%d kills with %d pods: silence of %v in the median, %v at the most", kills, pods, gaps[len(gaps)/2], gaps[len(gaps)-1])
	n.audited(nil, false)
	if after := n.possessions(agent); after != before {
		t.Errorf("the agent had %s, and has %s", before, after)
	}
	cancel()
	talking.Wait()
	for _, k := range all {
		if k.broken != nil || k.sent != k.taken || k.sent == 0 {
			t.Errorf("%s: the stream broke: %v, %d of %d numbers", k.name, k.broken, k.taken, k.sent)
		}
	}
	for i, ns := range nss {
		n.cniOf(ns, "DEL", fmt.Sprint("c", i))
	}
	n.audited(nil, false)
	agent.Process.Signal(syscall.SIGTERM)
	if err := agent.Wait(); err != nil {
		t.Error(err)
	}
	if out, err := n.uninstall(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if left := n.traces(); left != clean {
		t.Errorf("left on the node:\n%s\nwhich was\n%s", left, clean)
	}
}

// awaitAnswers returns the longest silence of any connection, once each has had an answer since.
func awaitAnswers(t *testing.T, all []*kept, since time.Time, limit time.Duration) (longest time.Duration) {
	t.Helper()
	deadline := since.Add(limit + 20*time.Second)
	for _, k := range all {
		gap, answered := k.answeredSince(since)
		for ; !answered; gap, answered = k.answeredSince(since) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: no answer", k.name)
			}
			time.Sleep(5 * time.Millisecond)
		}
		longest = max(longest, gap)
	}
	return longest
}

// othersTime is the CPU time that the machine has spent on neither this test nor its agents.
func othersTime(t *testing.T, agent *exec.Cmd) time.Duration {
	t.Helper()
	const tick = 10 * time.Millisecond // USER_HZ is 100
	ticks := func(path string, fields ...int) (sum time.Duration) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(string(text))
		for _, f := range fields {
			n, err := strconv.Atoi(words[f])
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			sum += time.Duration(n) * tick
		}
		return sum
	}
	others := ticks("/proc/stat", 1, 2, 3, 6, 7)                             // user, nice, system, irq, softirq
	others -= ticks(fmt.Sprintf("/proc/%d/stat", agent.Process.Pid), 13, 14) // utime, stime
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			t.Fatal(err)
		}
		others -= time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return others
}

// spawn starts an agent and doesn't wait for it.
func (n *installed) spawn() *exec.Cmd {
	n.t.Helper()
	cmd := n.node.Command(filepath.Join(n.dir, "tapyard"), "agent", "--config", n.config)
	cmd.Stderr = n.t.Output()
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	return cmd
}

// attach returns the pod's IPv4 address.
func (n *installed) attach(ns *nstest.NS, id string) string {
	n.t.Helper()
	n.cniOf(ns, "ADD", id)
	out, err := ns.Command("sh", "-c", "ip -4 -o address show dev eth0 | awk '{print $4}'").Output()
	if err != nil {
		n.t.Fatal(err)
	}
	addr, _, _ := strings.Cut(string(out), "/")
	return addr
}

func (n *installed) awaitReady() {
	n.t.Helper()
	eventually(n.t, "the agent answers", func() bool {
		_, err := observe.Client{Socket: filepath.Join(n.runDir, "admin.sock")}.Raw(n.t.Context(), "ports")
		return err == nil
	})
}

// possessions counts what might pile up: the agent's descriptors, files of its state, devices and tables.
func (n *installed) possessions(agent *exec.Cmd) string {
	n.t.Helper()
	n.awaitReady()
	var p string
	// The admin socket's own connection ends a little later.
	eventually(n.t, "the number of descriptors settles", func() bool {
		last := p
		p = fmt.Sprintf("%d descriptors, files %s, devices and tables %s", len(glob(fmt.Sprintf("/proc/%d/fd/*", agent.Process.Pid))), glob(n.stateDir+"/*"),
			strings.Join(strings.Fields(n.onNode("", "sh", "-c", "ls /sys/class/net | grep -v eth; nft list tables")), " "))
		return p == last
	})
	return p
}

func glob(pattern string) []string {
	names, _ := filepath.Glob(pattern)
	return names
}
