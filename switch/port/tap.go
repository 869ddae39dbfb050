package port

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// Read drivers/net/tun.c and Documentation/networking/tuntap.rst of the kernel first.

// ErrDeviceBusy is returned by OpenTAP when another process holds a queue of the device.
var ErrDeviceBusy = errors.New("another process is attached to the device; is a second agent running? 'ip tuntap' names its users")

// ErrDeviceExists is returned by MakeTAP when there is a device of that name, of whatever type.
var ErrDeviceExists = errors.New("a device of that name exists")

// tunUSO4 and tunUSO6 are TUN_F_USO4 and TUN_F_USO6 of linux/if_tun.h (kernel 6.2), valid as a pair only.
const tunUSO4, tunUSO6 = 0x20, 0x40

// offloads are tried in this order; the kernel answers EINVAL to a set with one that it doesn't know.
var offloads = []Caps{CapsAll, CapsAll &^ CapUSO, CapsAll &^ (CapUSO | CapTSOECN), CapCsum, 0}

// tunFlags are what TUNSETOFFLOAD calls a set of offloads.
func tunFlags(c Caps) (flags int) {
	for i, flag := range []int{unix.TUN_F_CSUM, unix.TUN_F_TSO4, unix.TUN_F_TSO6, unix.TUN_F_TSO_ECN, tunUSO4 | tunUSO6} {
		if c&(1<<i) != 0 {
			flags |= flag
		}
	}
	return flags
}

// less returns c without some offloads and what can't be without them: segments need checksums, and ECN is a kind of TSO.
func (c Caps) less(without Caps) Caps {
	c &^= without
	if c&CapCsum == 0 {
		return 0
	}
	if c&(CapTSO4|CapTSO6) == 0 {
		c &^= CapTSOECN
	}
	return c
}

// CreateTAP makes a persistent TAP device in the calling thread's network namespace. It carries no
// traffic until OpenTAP attaches its queue.
func CreateTAP(device string) error {
	ifce, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: device, Persist: true},
	})
	if err != nil {
		return fmt.Errorf("create TAP device %s (is /dev/net/tun there, and are we root?): %w", device, err)
	}
	return ifce.Close()
}

// TAPConfig says which device MakeTAP makes or OpenTAP attaches, and what the port is called.
type TAPConfig struct {
	Device   string // in the calling thread's network namespace
	PortName string // for operators
	PortKind string // "tap" when empty
	Without  Caps   // offloads to leave off
	Rings    *Rings // that frames are read and written with; nil has a system call for each frame

	// Queues above 1 are how many a device gets that was made with Queues above 1. There are fewer where Steering has
	// fewer workers, and one where it is nil or fails: without it, two queues reorder flows. A device keeps its kind, and
	// this one costs 6.4 MiB of the kernel's memory, since it has qdiscs for 256 queues; the other one 48 KiB.
	Queues   int
	Steering *Steering
}

// TAP is a Port over a TAP device with virtio-net headers and one queue, or several that flows are spread over.
type TAP struct {
	cfg       TAPConfig
	fds       []int // of the queues, in the kernel's order
	caps      Caps
	rx        []RxQueue // *tapRx
	unsteered error     // why there is one queue only

	lastError atomic.Uint32 // errno of the last write that was refused for a reason of its own

	mu     sync.Mutex // Close against KernelDrops, which observers call
	closed bool       // guarded by mu
}

var _ Port = (*TAP)(nil)

// MakeTAP makes a device in the calling thread's network namespace and attaches its queues like OpenTAP. Until Persist the
// device goes with its descriptors, which a killed process loses. The error wraps ErrDeviceExists if the name is taken.
func MakeTAP(cfg TAPConfig) (*TAP, error) { return openTAP(cfg, (*TAP).create) }

// OpenTAP attaches the queues of an existing device in the calling thread's network namespace and switches
// on the offloads that the kernel has. The descriptors keep that namespace alive, whatever becomes of its other users.
func OpenTAP(cfg TAPConfig) (*TAP, error) { return openTAP(cfg, (*TAP).attach) }

func openTAP(cfg TAPConfig, attach func(*TAP) error) (*TAP, error) {
	t := newTAP(cfg)
	if err := attach(t); err != nil {
		return nil, errors.Join(fmt.Errorf("attach to TAP device %s: %w", cfg.Device, err), t.closeQueues())
	}
	t.addRx()
	return t, nil
}

// Persist has the device stay when its descriptors are closed: from here on Close leaves it.
func (t *TAP) Persist() error {
	if err := unix.IoctlSetInt(t.fds[0], unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("have device %s outlive its descriptors (TUNSETPERSIST): %w", t.cfg.Device, err)
	}
	return nil
}

func newTAP(cfg TAPConfig) *TAP {
	t := &TAP{cfg: cfg}
	if t.cfg.PortKind == "" {
		t.cfg.PortKind = "tap"
	}
	return t
}

// addRx makes the receive queues of the attached ones.
func (t *TAP) addRx() {
	for _, fd := range t.fds {
		t.rx = append(t.rx, &tapRx{fd: fd, rings: t.cfg.Rings})
	}
}

func (t *TAP) negotiate() error {
	if err := unix.IoctlSetPointerInt(t.fds[0], unix.TUNSETVNETHDRSZ, wire.VirtioNetLen); err != nil {
		return fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
	}
	return t.setOffload()
}

func (t *TAP) setOffload() (err error) {
	for _, caps := range offloads {
		caps = caps.less(t.cfg.Without)
		if err = unix.IoctlSetInt(t.fds[0], unix.TUNSETOFFLOAD, tunFlags(caps)); err == nil {
			t.caps = caps
			return nil
		}
	}
	return fmt.Errorf("TUNSETOFFLOAD: %w", err)
}

// Name implements Port.
func (t *TAP) Name() string { return t.cfg.PortName }

// Kind implements Port.
func (t *TAP) Kind() string { return t.cfg.PortKind }

// Caps implements Port.
func (t *TAP) Caps() Caps { return t.caps }

// Engine says how workers read and write the device; the slow worker has no ring.
func (t *TAP) Engine() Engine {
	if t.cfg.Rings == nil {
		return ReadWrite
	}
	return IOUring
}

// Rx implements Port.
func (t *TAP) Rx() []RxQueue { return t.rx }

// Tx implements Port. One write is atomic in the kernel, so any number of workers may send by any descriptor.
func (t *TAP) Tx(worker int, st *Stats) TxQueue {
	return &tapTx{tap: t, fd: t.fds[worker%len(t.fds)], st: st, ring: t.cfg.Rings.of(worker)}
}

// Unsteered says why a device that is to have several queues has one, or returns nil.
func (t *TAP) Unsteered() error { return t.unsteered }

// errClosed is of what is done to a port after its Close: by then its descriptors' numbers may be those of other files.
var errClosed = fmt.Errorf("the port is closed: %w", unix.EBADF)

// Close detaches from the device, which stays with its addresses and routes if it is persistent.
func (t *TAP) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.close()
}

func (t *TAP) close() error {
	if t.closed {
		return errClosed
	}
	t.closed = true
	return t.closeQueues()
}

// LastError returns what the kernel said when it last refused a frame with reason tx_error, or nil.
func (t *TAP) LastError() error {
	if errno := unix.Errno(t.lastError.Load()); errno != 0 {
		return errno
	}
	return nil
}

// Remove destroys the device, wherever it is: it loses its persistence and then its last queue.
func (t *TAP) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	err := unix.IoctlSetInt(t.fds[0], unix.TUNSETPERSIST, 0)
	return errors.Join(err, t.close())
}

// Gone says that the device was deleted under the port.
func (t *TAP) Gone() bool {
	p := []unix.PollFd{{Fd: int32(t.fds[0])}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&unix.POLLERR != 0
}

func decodeVirtio(h wire.VirtioNet, m *frame.Meta) {
	m.GSOType = h.GSOType()
	m.NeedsCsum = h.Flags()&wire.NeedsCsum != 0
	m.HdrLen, m.GSOSize = h.HdrLen(), h.GSOSize()
	m.CsumStart, m.CsumOffset = h.CsumStart(), h.CsumOffset()
}

// EncodeVirtio writes the virtio-net header that describes m into h.
func EncodeVirtio(h wire.VirtioNet, m *frame.Meta) {
	var fields wire.VirtioNetFields
	if m.NeedsCsum {
		fields.Flags = wire.NeedsCsum
		fields.CsumStart, fields.CsumOffset = m.CsumStart, m.CsumOffset
	}
	if m.IsSuper() {
		fields.GSOType, fields.HdrLen, fields.GSOSize = m.GSOType, m.HdrLen, m.GSOSize
	}
	h.Encode(&fields)
}
