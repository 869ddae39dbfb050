package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/wire"
)

// Frames of a benchmark are counted as on an Ethernet wire, where "64 bytes" includes the frame check
// sequence; no device shows it, so a 64-byte frame has 60 bytes in memory. Preamble and gap (20 bytes more)
// are not counted.
const (
	fcsLen  = 4
	udpHead = wire.EthernetLen + wire.IPv4MinLen + wire.UDPLen

	// stampLen is what the generator writes into each payload: the run's number and the frame's.
	stampLen = 16

	// minFrame is the least wire size that has room for the stamp: 14+20+8 bytes of headers, 16 of stamp
	// and 4 of FCS are 62, Ethernet's minimum is 64.
	minFrame = 64

	// maxFrame is the largest that a pod's MTU lets through, which leaves room for VXLAN on Ethernet.
	maxFrame = wire.EthernetLen + podMTU + fcsLen
)

// refusedPause is how long the generator leaves a full device alone. The device's ring has 1000 places and
// even 2 million frames a second take 200 of them in this time, so it never runs dry.
const refusedPause = 100 * time.Microsecond

// generatorSpec says what a generator sends: numbered UDP frames.
type generatorSpec struct {
	Netns  string         // path of the pod's namespace
	Device string         // the pod's device
	From   netip.AddrPort // IPv4
	To     netip.AddrPort // IPv4
	ToMAC  string
	Flows  int           // how many flows take turns, frame by frame, from From's port upwards; 0 is 1
	Frame  int           // bytes on the wire, FCS included; at least minFrame
	Mix    []int         // sizes that take turns, instead of Frame
	Rate   int           // frames per second; 0 is as fast as the device takes them
	Run    uint64        // tells this run's frames from another's
	Time   time.Duration // how long it sends

	// Window is how many frames may be on their way at most; 0 is as many as the device takes. Arrived is then the
	// file that the sink counts them in, see counter.
	Window  int
	Arrived string
}

// generatorResult is the generator's side of the account.
type generatorResult struct {
	Sent    uint64        // taken by the device
	Refused uint64        // attempts that found the device's ring full; the device counts them as dropped
	Took    time.Duration // from the first frame to the last
	Late    time.Duration // the furthest behind its intended time that a paced frame was sent
	CPU     time.Duration // that the generator itself has used
}

type generator struct {
	spec      generatorSpec
	fd        int
	window    *window  // nil: none
	templates [][]byte // a frame without its stamp for each place in the mix
	batch     *batch
	result    generatorResult
}

// generate is the job of a generator: AF_PACKET past the queueing discipline, 64 frames to a call.
func generate(c *console, spec generatorSpec) (generatorResult, error) {
	if err := enterForGood(spec.Netns); err != nil {
		return generatorResult{}, err
	}
	g, err := newGenerator(spec)
	if err != nil {
		return generatorResult{}, fmt.Errorf("set up the generator on %s: %w", spec.Device, err)
	}
	defer unix.Close(g.fd)
	if spec.Window > 0 {
		arrived, err := openCounter(spec.Arrived)
		if err != nil {
			return generatorResult{}, err
		}
		defer arrived.close()
		g.window = &window{size: uint64(spec.Window), arrived: arrived}
	}
	if err := c.ready(); err != nil {
		return generatorResult{}, err
	}
	if err := c.wait(); err != nil {
		return generatorResult{}, err
	}
	if err := g.run(); err != nil {
		return generatorResult{}, fmt.Errorf("send frame %d out of %s: %w", g.result.Sent, spec.Device, err)
	}
	g.result.CPU, err = processCPU(os.Getpid())
	return g.result, err
}

func newGenerator(spec generatorSpec) (*generator, error) {
	dev, err := net.InterfaceByName(spec.Device)
	if err != nil {
		return nil, err
	}
	templates, err := templateFrames(spec, dev.HardwareAddr)
	if err != nil {
		return nil, err
	}
	fd, err := packetSocket(dev.Index)
	if err != nil {
		return nil, err
	}
	// The kernel adds 50 µs of slack to every sleep otherwise, which is half of refusedPause.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("PR_SET_TIMERSLACK: %w", err)
	}
	return &generator{spec: spec, fd: fd, templates: templates, batch: newBatch(maxFrame)}, nil
}

// packetSocket sends only: protocol 0 receives nothing.
func packetSocket(ifindex int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open an AF_PACKET socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex}),
	)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind to interface %d: %w", ifindex, err)
	}
	return fd, nil
}

// templateFrames are the frames of the mix.
func templateFrames(spec generatorSpec, from net.HardwareAddr) ([][]byte, error) {
	if ports := 1<<16 - int(spec.From.Port()); spec.Flows > ports {
		return nil, fmt.Errorf("%d flows need as many source ports, from %d upwards there are %d", spec.Flows, spec.From.Port(), ports)
	}
	sizes := spec.Mix
	if len(sizes) == 0 {
		sizes = []int{spec.Frame}
	}
	var frames [][]byte
	for _, spec.Frame = range sizes {
		frame, err := templateFrame(spec, from)
		if err != nil {
			return nil, err
		}
		frames = append(frames, frame)
	}
	return frames, nil
}

// templateFrame is a frame without its stamp. The UDP checksum is left out (RFC 768 allows it over IPv4),
// for the payload changes with every frame.
func templateFrame(spec generatorSpec, from net.HardwareAddr) ([]byte, error) {
	to, err := net.ParseMAC(spec.ToMAC)
	if err != nil {
		return nil, err
	}
	if spec.Frame < minFrame {
		return nil, fmt.Errorf("a frame of %d bytes has no room for its number, the least is %d", spec.Frame, minFrame)
	}
	if spec.Frame > maxFrame {
		return nil, fmt.Errorf("a frame of %d bytes does not fit the pods' MTU of %d, the most is %d", spec.Frame, podMTU, maxFrame)
	}
	frame := make([]byte, spec.Frame-fcsLen)
	copy(frame, to)
	copy(frame[6:], from)
	binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IP)
	encodeIPv4(frame[wire.EthernetLen:], spec.From.Addr(), spec.To.Addr())
	udp := frame[wire.EthernetLen+wire.IPv4MinLen:]
	binary.BigEndian.PutUint16(udp[0:], spec.From.Port())
	binary.BigEndian.PutUint16(udp[2:], spec.To.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	binary.BigEndian.PutUint64(frame[udpHead:], spec.Run)
	return frame, nil
}

// encodeIPv4 writes the header of a UDP packet that fills p.
func encodeIPv4(p []byte, from, to netip.Addr) {
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[6] = 0x40 // DF, as Linux sends UDP
	p[8] = 64   // TTL
	p[9] = unix.IPPROTO_UDP
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	var sum uint32
	for i := 0; i < wire.IPv4MinLen; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
}

// run sends until the time is over. Frame i is due at start + i/rate: a late frame doesn't delay those
// after it, so that a stall of the switch shows (no coordinated omission).
func (g *generator) run() error {
	start := time.Now()
	for {
		elapsed := time.Since(start)
		if elapsed >= g.spec.Time {
			g.result.Took = elapsed
			return nil
		}
		due := g.due(elapsed)
		if due == 0 {
			sleep(g.dueAt(g.result.Sent) - elapsed)
			continue
		}
		if g.window != nil && !g.window.open(g.result.Sent, elapsed) {
			sleep(refusedPause)
			continue
		}
		if err := g.sendBatch(due); err != nil {
			return err
		}
	}
}

// due returns how many frames, up to a batch, should have been sent by now and were not.
func (g *generator) due(elapsed time.Duration) int {
	if g.spec.Rate == 0 {
		return batchSize
	}
	late := elapsed - g.dueAt(g.result.Sent)
	if late < 0 {
		return 0
	}
	g.result.Late = max(g.result.Late, late)
	return min(batchSize, 1+int(late*time.Duration(g.spec.Rate)/time.Second))
}

func (g *generator) dueAt(frame uint64) time.Duration {
	return time.Duration(frame) * time.Second / time.Duration(g.spec.Rate)
}

// sleep sleeps to the microsecond. time.Sleep waits in epoll_wait, whose unit is a millisecond: a paced generator would
// send in bursts as long as that, and a ring that is left alone so long runs dry.
func sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.Nanosleep(&ts, nil) // a signal that cuts it short is no harm: the callers look at the clock
}

// sendBatch numbers n frames and sends them. What the device refuses gets its number again next time.
func (g *generator) sendBatch(n int) error {
	for i := range n {
		g.fill(i, g.result.Sent+uint64(i))
	}
	sent, errno := g.batch.send(g.fd, n)
	g.result.Sent += uint64(sent)
	switch {
	case sent == n || errno == unix.EINTR:
		return nil
	case errno == unix.ENOBUFS || errno == 0: // sendmmsg hides the error after a frame that went out
		g.result.Refused++
		sleep(refusedPause)
		return nil
	}
	return errno
}

// fill makes the i-th buffer frame number `number`: its size, flow and stamp. Payloads stay zero behind the stamp.
func (g *generator) fill(i int, number uint64) {
	template := g.templates[number%uint64(len(g.templates))]
	b := g.batch.bufs[i][:len(template)]
	copy(b, template[:udpHead+stampLen])
	binary.BigEndian.PutUint64(b[udpHead+8:], number)
	ip := b[wire.EthernetLen:]
	udp := wire.UDP(ip[wire.IPv4MinLen:])
	if g.spec.Flows > 1 {
		udp.SetSrcPort(udp.SrcPort() + uint16(number%uint64(g.spec.Flows)))
	}
	udp.UpdateChecksum(wire.PseudoHeader(ip, false, wire.ProtoUDP, len(udp)))
	g.batch.iovs[i].SetLen(len(b))
}
