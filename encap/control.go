package encap

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// control is what a Tunnel does beside the data path: its goroutine runs the negotiator. Workers reach it through bounded
// channels, and what finds them full comes again.
type control struct {
	wants   chan *Peer // there is traffic for which another wire would pay
	hellos  chan heard
	done    chan struct{} // closed by stop
	ended   chan struct{} // closed by run
	stopped sync.Once

	local netip.AddrPort
	peers *VTEPTable
	tx    *txQueue // on a socket of its own
	pool  *frame.Pool
	probe int // descriptor
	to    sockaddr
	buf   [helloLen]byte
	st    port.Stats // not shown
}

// heard is a hello that a worker received.
type heard struct {
	from *Peer
	hello
}

// newControl returns one that sends with the socket source, and looks for paths with probe.
func newControl(t *Tunnel, source, probe int) *control {
	c := &control{
		wants: make(chan *Peer, 64), hellos: make(chan heard, 64), done: make(chan struct{}), ended: make(chan struct{}),
		local: t.local(), peers: t.cfg.Peers, pool: frame.NewPool(1, frame.Headroom+frame.MaxLen), probe: probe,
	}
	var sources [lanes]int
	sources[0] = source
	c.tx = newTxQueue(t, sources)
	c.tx.fd, c.tx.st = source, &c.st
	return c
}

// run serves until stop. It sleeps while no peer has traffic for which another wire would pay.
func (c *control) run() {
	defer close(c.ended)
	n, start := newNegotiator(c), time.Now()
	ticker := time.NewTicker(helloEvery)
	ticker.Stop()
	for ticking := false; ; {
		select {
		case <-c.done:
			n.leave(c.peers.load().byIndex, c.local.Addr(), time.Since(start))
			return
		case p := <-c.wants:
			n.want(p, time.Since(start))
		case h := <-c.hellos:
			n.hear(h.from, h.hello, time.Since(start))
		case <-ticker.C:
			n.keep(c.peers.load().byIndex)
			n.tick(time.Since(start))
		}
		switch busy := len(n.active) > 0; {
		case busy && !ticking:
			ticker.Reset(helloEvery)
			ticking = true
		case !busy && ticking:
			ticker.Stop()
			ticking = false
		}
	}
}

// stop ends run, which tells the peers. Further calls do nothing.
func (c *control) stop() {
	c.stopped.Do(func() { close(c.done) })
	<-c.ended
}

// hello implements outbox. What the kernel refuses is as good as lost.
func (c *control) hello(p *Peer, h hello) {
	h.encode(c.buf[:])
	var iov unix.Iovec
	mmsg.SetBuffer(&iov, c.buf[:])
	var msg [1]mmsg.Message
	msg[0].Hdr.Name, msg[0].Hdr.Namelen = &c.to[0], c.to.encode(netip.AddrPortFrom(p.Underlay, c.local.Port()))
	msg[0].Hdr.Iov = &iov
	msg[0].Hdr.SetIovlen(1)
	mmsg.Send(c.tx.fd, msg[:])
}

// test implements outbox: its messages go the way that super-frames go.
func (c *control) test(p *Peer, test uint32) (size int) {
	if size = c.datagramSize(p.Underlay); size == 0 {
		return 0
	}
	q := c.tx
	q.peers = c.peers.load()
	for number, n := range testLens(size) {
		fillTest(c.pool.Reserve(0, n), test, uint32(number))
		f := c.pool.Commit(n)
		f.Meta = testMeta
		q.sendSlices(0, f, p, testFlags, size)
		q.reasons[0] = drop.None
		f.Release()
	}
	return size
}

// datagramSize returns how many bytes a datagram to a peer may have so that it isn't too big for the way there, as far as
// this node knows, or 0 if there is no way.
func (c *control) datagramSize(to netip.Addr) int {
	sa := unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16(), Port: int(c.local.Port())})
	level, option, headers := unix.IPPROTO_IPV6, unix.IPV6_MTU, wire.IPv6Len+wire.UDPLen
	if to.Is4() {
		sa = &unix.SockaddrInet4{Addr: to.As4(), Port: int(c.local.Port())}
		level, option, headers = unix.IPPROTO_IP, unix.IP_MTU, wire.IPv4MinLen+wire.UDPLen
	}
	if unix.Connect(c.probe, sa) != nil {
		return 0
	}
	mtu, err := unix.GetsockoptInt(c.probe, level, option)
	size := min(mtu-headers, maxMessage)
	if err != nil || !takesSlices(frame.MaxLen, size) {
		return 0
	}
	return size
}
