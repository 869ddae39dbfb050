package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	meshInterval = 10 * time.Millisecond
	meshPort     = 5003
	meshChunk    = 1 << 10 // bytes that a stream sends every meshInterval: 800 kbit/s
)

// mesh is every pair of a lab's pods talking to each other: a datagram and its echo every meshInterval, and
// a TCP stream. Its sockets are in the pods' namespaces, its goroutines in this process.
type mesh struct {
	pairs   []*meshPair
	echoes  []*net.UDPConn
	closing chan struct{} // closed when probes and streams shall end
	running sync.WaitGroup
}

// meshPair is one pair of pods.
type meshPair struct {
	from, to *LabPod
	probe    *net.UDPConn
	out, in  *net.TCPConn

	mu      sync.Mutex
	answers []time.Time // when answers came

	sent, received uint64 // bytes of the stream; read after mesh.stop
	broken         error  // what ended the stream, or was wrong in it; the reader's
	writeErr       error
}

// meshOutcome is what a mesh has seen.
type meshOutcome struct {
	mesh     *mesh
	ended    time.Time
	survived int // streams that delivered every byte in order
}

// startMesh opens all sockets and starts to talk.
func startMesh(lab *Lab) (*mesh, error) {
	m := &mesh{closing: make(chan struct{})}
	if err := m.open(lab); err != nil {
		m.closeSockets()
		return nil, err
	}
	for _, echo := range m.echoes {
		m.running.Go(func() { answerProbes(echo) })
	}
	start := time.Now()
	for _, p := range m.pairs {
		m.running.Go(func() { p.sendProbes(start, m.closing) })
		m.running.Go(p.receiveAnswers)
		m.running.Go(func() { p.writeStream(start, m.closing) })
		m.running.Go(p.readStream)
	}
	return m, nil
}

func (m *mesh) open(lab *Lab) error {
	for i := range lab.Pods {
		if err := m.openEcho(&lab.Pods[i]); err != nil {
			return fmt.Errorf("listen in pod %s: %w", lab.Pods[i].Name, err)
		}
	}
	for i := range lab.Pods {
		for j := range lab.Pods[:i] {
			p := &meshPair{from: &lab.Pods[j], to: &lab.Pods[i]}
			m.pairs = append(m.pairs, p)
			if err := p.open(); err != nil {
				return fmt.Errorf("connect %s to %s: %w", p.from.Name, p.to.Name, err)
			}
		}
	}
	return nil
}

// meshAddr is a pod's IPv4 address with the mesh's port.
func meshAddr(p *LabPod) netip.AddrPort {
	i := slices.IndexFunc(p.Addresses, netip.Addr.Is4)
	return netip.AddrPortFrom(p.Addresses[i], meshPort)
}

func (m *mesh) openEcho(p *LabPod) error {
	return inNetns(p.Netns, func() error {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(meshAddr(p)))
		if err == nil {
			m.echoes = append(m.echoes, c)
		}
		return err
	})
}

// open makes the pair's sockets, each in its pod.
func (p *meshPair) open() error {
	var listener *net.TCPListener
	err := inNetns(p.to.Netns, func() (err error) {
		at := netip.AddrPortFrom(meshAddr(p.to).Addr(), 0)
		listener, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return err
	}
	defer listener.Close()
	err = inNetns(p.from.Netns, func() (err error) {
		if p.probe, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(meshAddr(p.to))); err != nil {
			return err
		}
		p.out, err = net.DialTCP("tcp4", nil, listener.Addr().(*net.TCPAddr))
		return err
	})
	if err != nil {
		return err
	}
	p.in, err = listener.AcceptTCP()
	return err
}

// answerProbes sends back what comes until the socket is closed.
func answerProbes(c *net.UDPConn) {
	buf := make([]byte, 64)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			// A lost answer is what the other end measures.
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

// everyInterval calls f at each multiple of meshInterval after start, late ones at once, until it is told
// to stop or f fails.
func everyInterval(start time.Time, stop <-chan struct{}, f func(number uint64) error) error {
	for number := uint64(0); ; number++ {
		select {
		case <-stop:
			return nil
		case <-time.After(time.Until(start.Add(time.Duration(number) * meshInterval))):
		}
		if err := f(number); err != nil {
			return err
		}
	}
}

// sendProbes sends a number every meshInterval; an error is a lost probe, and shows as such.
func (p *meshPair) sendProbes(start time.Time, stop <-chan struct{}) {
	var buf [8]byte
	_ = everyInterval(start, stop, func(number uint64) error {
		binary.BigEndian.PutUint64(buf[:], number)
		_, _ = p.probe.Write(buf[:])
		return nil
	})
}

// receiveAnswers notes when answers came. ICMP errors make a read fail in between.
func (p *meshPair) receiveAnswers() {
	buf := make([]byte, 64)
	for {
		_, err := p.probe.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.mu.Lock()
			p.answers = append(p.answers, time.Now())
			p.mu.Unlock()
		}
	}
}

// streamByte is what a stream carries at an offset; its period is prime, so that no lost chunk goes unseen.
func streamByte(offset uint64) byte { return byte(offset % 251) }

func (p *meshPair) writeStream(start time.Time, stop <-chan struct{}) {
	chunk := make([]byte, meshChunk)
	p.writeErr = everyInterval(start, stop, func(uint64) error {
		for i := range chunk {
			chunk[i] = streamByte(p.sent + uint64(i))
		}
		n, err := p.out.Write(chunk)
		p.sent += uint64(n)
		return err
	})
	p.writeErr = errors.Join(p.writeErr, p.out.CloseWrite())
}

func (p *meshPair) readStream() {
	buf := make([]byte, 4*meshChunk)
	for {
		n, err := p.in.Read(buf)
		for _, b := range buf[:n] {
			if b != streamByte(p.received) && p.broken == nil {
				p.broken = fmt.Errorf("byte %d is wrong", p.received)
			}
			p.received++
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			p.broken = err
			return
		}
	}
}

// survived says whether the stream delivered every byte in order.
func (p *meshPair) survived() bool {
	return p.writeErr == nil && p.broken == nil && p.sent == p.received && p.sent > 0
}

// awaitAnswers returns when every pair has had an answer since.
func (m *mesh) awaitAnswers(ctx context.Context, since time.Time) error {
	for deadline := since.Add(restartRecovery); ; {
		silent := m.silent(since)
		if len(silent) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no answer for %v between %s", restartRecovery, strings.Join(silent, ", "))
		}
		if err := pause(ctx, meshInterval); err != nil {
			return err
		}
	}
}

// silent names the pairs that have had no answer since.
func (m *mesh) silent(since time.Time) (pairs []string) {
	for _, p := range m.pairs {
		p.mu.Lock()
		if len(p.answers) == 0 || p.answers[len(p.answers)-1].Before(since) {
			pairs = append(pairs, p.from.Name+" and "+p.to.Name)
		}
		p.mu.Unlock()
	}
	return pairs
}

// meshGap is a silence between two answers of a pair.
type meshGap struct {
	pair *meshPair
	time time.Duration
}

// String describes the gap for people.
func (g meshGap) String() string {
	return fmt.Sprintf("%.0f ms between %s and %s", milliseconds(g.time), g.pair.from.Name, g.pair.to.Name)
}

// longest returns the longest of the gaps.
func longest(gaps []meshGap) meshGap {
	return slices.MaxFunc(gaps, func(a, b meshGap) int { return cmp.Compare(a.time, b.time) })
}

// gaps returns each pair's longest gap from the kill until the time given: those of the pairs with a pod on
// the killed agent's node, and those of the others, the bystanders.
func (m *mesh) gaps(k kill, until time.Time) (hit, bystanders []meshGap) {
	for _, p := range m.pairs {
		p.mu.Lock()
		g := meshGap{p, longestGap(p.answers, k.at, until)}
		p.mu.Unlock()
		if p.from.Node == k.node || p.to.Node == k.node {
			hit = append(hit, g)
		} else {
			bystanders = append(bystanders, g)
		}
	}
	return hit, bystanders
}

// longestGap is the longest time between neighbouring answers of which the second came in the window.
func longestGap(answers []time.Time, from, until time.Time) (longest time.Duration) {
	for i := 1; i < len(answers); i++ {
		if answers[i].After(from) && !answers[i].After(until) {
			longest = max(longest, answers[i].Sub(answers[i-1]))
		}
	}
	return longest
}

// stop ends the talk and says what became of it.
func (m *mesh) stop() meshOutcome {
	ended := time.Now()
	close(m.closing)
	limit := ended.Add(restartRecovery) // for what is still on its way
	for _, p := range m.pairs {
		p.in.SetDeadline(limit)
		p.out.SetDeadline(limit)
		p.probe.Close()
	}
	for _, c := range m.echoes {
		c.Close()
	}
	m.running.Wait()
	m.closeSockets()
	o := meshOutcome{mesh: m, ended: ended}
	for _, p := range m.pairs {
		if p.survived() {
			o.survived++
		}
	}
	return o
}

// closeSockets tolerates a mesh that is not complete.
func (m *mesh) closeSockets() {
	for _, c := range m.echoes {
		c.Close()
	}
	for _, p := range m.pairs {
		if p.probe != nil {
			p.probe.Close()
		}
		if p.out != nil {
			p.out.Close()
		}
		if p.in != nil {
			p.in.Close()
		}
	}
}
