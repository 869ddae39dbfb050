// Package attach connects pods to the switch and takes them off it: an address from the pool, a TAP device
// or an end of a veth pair in the pod's namespace, and a durable record, so that the device is found again
// when the agent comes back. It is the agent's side of the CNI plugin (package podapi). What the switch does
// with an attachment is behind two callbacks.
//
// The order of every change is such that a kill at any point leaves something that the runtime's DEL or the
// next start completes: an attachment is recorded before it is published and answered, a TAP outlives its agent only
// once it is recorded, and the record goes after the device.
//
// Devices are made in the pod, never moved there, which costs the kernel 20 ms. So a TAP's descriptors, which belong to the
// namespace in which they were opened, keep it alive: a pod that vanishes without a DEL is the sweep's to notice.
//
// The verbs are add.go, del.go, check.go, status.go and gc.go, called by handler.go; conf.go reads the network configuration,
// and delegate.go, with plugin.go, runs the plugins that give out addresses. record.go, store.go and pages.go keep the records,
// alias.go their copies, and audit.go, reconcile.go, rebuild.go and scan.go compare them with what there is. host.go, egress.go,
// ports.go and forwarding.go are the host's side; restore.go and handover.go the start, sweep.go and mtu.go what goes on.
package attach

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tapyard/switch/handover"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Attachment is one pod interface, as recorded. Its slices are not to be changed.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	// Name is the port's, unique on the node: "namespace/pod" as the runtime says, or the first 12
	// characters of the container's id; "/ifname" follows unless that is eth0.
	Name      string         `json:"name"`
	NetnsPath string         `json:"netnsPath"`
	NetnsDev  uint64         `json:"netnsDev"` // device and inode tell the namespace from a later one at that path
	NetnsIno  uint64         `json:"netnsIno"`
	BootID    string         `json:"bootID"` // of the kernel; inodes begin anew with each boot
	MAC       wire.MAC       `json:"mac"`
	Addresses []netip.Prefix `json:"addresses"` // with their subnets' lengths; none in L2 mode
	Gateways  []netip.Addr   `json:"gateways"`  // one per address, or none in a network without routes
	MTU       int            `json:"mtu"`       // bytes, without the Ethernet header
	VNI       uint32         `json:"vni"`
	PortType  string         `json:"portType"`
	Queues    int            `json:"queues,omitempty"`   // above 1: of the TAP, which was made for several
	Conflist  string         `json:"conflist,omitempty"` // name of the network configuration that added it, whose GC may collect it
	Created   time.Time      `json:"created"`

	// What the network configuration added.
	Ranges       []netip.Prefix `json:"ranges,omitempty"`   // where the addresses are from
	MTULimit     int            `json:"mtuLimit,omitempty"` // MTU stays below, when the network's grows
	Routes       []Route        `json:"routes,omitempty"`   // beside the default ones by Gateways
	Bandwidth    *Bandwidth     `json:"bandwidth,omitempty"`
	PortMappings []PortMapping  `json:"portMappings,omitempty"`
	IPAM         *Delegation    `json:"ipam,omitempty"` // nil: the addresses are from our own pools

	// Pending is set in the record of an ADD that has not ended, of which a restart sees that of a killed one.
	Pending bool `json:"pending,omitempty"`
}

// The types of a pod's port.
const (
	TAP  = "tap"  // the pod's device is the TAP itself
	Veth = "veth" // the pod's device is one end of a pair, whose other end stays with the agent
)

// Key identifies an attachment as the CNI specification does: "containerID/ifName".
func (a Attachment) Key() string { return a.ContainerID + "/" + a.IfName }

// Addrs returns the addresses without their subnets' lengths.
func (a Attachment) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range a.Addresses {
		out = append(out, p.Addr())
	}
	return out
}

// AllRoutes returns the routes of the pod's device: those of the configuration first, which stand for a default
// one of the network.
func (a Attachment) AllRoutes() []Route {
	routes := slices.Clone(a.Routes)
	for _, gw := range a.Gateways {
		if dst := defaultOf(gw); !hasRoute(routes, dst) {
			routes = append(routes, Route{Dst: dst, GW: gw})
		}
	}
	return routes
}

// Config says how pods are attached.
type Config struct {
	StateDir string         // holds tapyard.db
	Subnets  []netip.Prefix // at most one per address family; none in L2 mode
	VNI      uint32
	MTU      func() int // of a new or restored pod, in bytes
	L2       bool       // pods get a device without addresses and routes
	Networks []Network
	PortType string          // of new pods: TAP, also when empty, or Veth; pods that are there keep theirs
	Without  port.Caps       // offloads that TAPs do without
	Rings    *port.Rings     // of TAPs; may be nil
	Queues   int             // of new pods' TAPs; those that are there keep theirs. 0 is 1
	Steering *port.Steering  // of TAPs with several queues; nil has one for all
	Store    *handover.Store // of descriptors for the next process; may be nil
	Log      *slog.Logger
	// Publish makes the switch serve the attachment. The port stays the Manager's: neither callback closes
	// it. An error means that nothing was published.
	Publish func(Attachment, port.Port) error
	// Withdraw takes the attachment out of the switch and returns when no worker can touch its port any more.
	Withdraw func(context.Context, Attachment) error
	// MapPorts brings the host's rules to Mapped, which has changed: SetPorts. Only pods of a network with
	// routes have any.
	MapPorts func() error
	// Probe sends a frame through the port to each of the addresses, which are the pod's, and returns nil when answers
	// have come back through it. May be nil.
	Probe func(context.Context, Attachment, []netip.Addr) error
	// CutOff says why no other node can be reached, or nil. May be nil.
	CutOff func() error

	step func(name string) error // a test's: is called before each step of ADD and DEL, which fails with its error
}

// Manager attaches and detaches. Its methods may be called from any goroutine, Restore before the others
// and Close after them.
type Manager struct {
	cfg      Config
	bootID   string
	agent    agentID
	prefix   string // of temporary device names in the agent's namespace; our own among agents that share it
	serial   atomic.Uint32
	networks []*network // the node's own first
	store    *store
	locks    keyLocks
	removals sync.WaitGroup // of devices that are out of their pods, and which the kernel is still at
	stopped  bool           // it only looks: no agent runs

	mu      sync.Mutex
	entries map[string]*entry // by Key
}

// entry is an attachment that exists or is being made.
type entry struct {
	a    Attachment
	dev  device // nil unless the attachment is published
	fail error  // why it can't be restored: its addresses could not be claimed, or its ADD was killed

	located bool // its namespace can be looked for: it was found by a path, which in a container without the host's /run and /proc it is not
	mapped  bool // its port mappings are in force, or were when the agent ended
}

// device is the port of a pod with what it stands on.
type device interface {
	port.Port
	Delete() (ended <-chan struct{}, err error) // see port.TAP's; also when the device is gone
	Gone() bool
	FDs() []int // that read and write it
}

// Open opens the database, which excludes a second agent on the same state, and claims the recorded
// addresses. No pod is touched before Restore. A database that can't be relied on is a *DamagedError.
func Open(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, entries: map[string]*entry{}, prefix: tmpPrefix(cfg.StateDir)}
	switch cfg.PortType {
	case "":
		m.cfg.PortType = TAP
	case TAP, Veth:
	default:
		return nil, fmt.Errorf("configuration: portType %q: %s or %s", cfg.PortType, TAP, Veth)
	}
	if err := m.makeNetworks(); err != nil {
		return nil, err
	}
	if err := m.identifySelf(); err != nil {
		return nil, err
	}
	var err error
	if m.store, err = openOrCreate(filepath.Join(cfg.StateDir, database), m.agent); err != nil {
		return nil, err
	}
	if err := m.load(); err != nil {
		return nil, errors.Join(err, m.store.close())
	}
	return m, nil
}

// database is the name of the records' file in the state directory.
const database = "tapyard.db"

// identifySelf finds out what the records and devices of this agent and this boot are known by.
func (m *Manager) identifySelf() (err error) {
	if err = os.MkdirAll(m.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if m.agent, err = agentIDOf(m.cfg.StateDir); err == nil {
		m.bootID, err = bootID()
	}
	return err
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the kernel's boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// at tells a test where an ADD or DEL is.
func (m *Manager) at(step string) error {
	if m.cfg.step == nil {
		return nil
	}
	return m.cfg.step(step)
}

// temporary returns a device name that is nobody's.
func (m *Manager) temporary() string {
	return fmt.Sprintf("%s%06x", m.prefix, m.serial.Add(1)&0xffffff)
}

// tmpPrefix is short enough for a serial number in IFNAMSIZ.
func tmpPrefix(stateDir string) string {
	sum := sha256.Sum256([]byte(stateDir))
	return "tytmp" + hex.EncodeToString(sum[:2])
}

// load reads the records, oldest first, as ipam wants its claims.
func (m *Manager) load() error {
	records, err := m.store.load()
	if err != nil {
		return err
	}
	for _, a := range records {
		e := &entry{a: a, fail: m.claim(a), mapped: len(a.PortMappings) > 0}
		if a.Pending {
			e.fail, e.mapped = fmt.Errorf("its ADD was killed, and who waited for it is %w", errGone), false
		}
		m.entries[a.Key()] = e
	}
	return nil
}

// List returns the published attachments, oldest first.
func (m *Manager) List() []Attachment {
	var out []Attachment
	for _, e := range m.snapshot() {
		if e.dev != nil {
			out = append(out, e.a)
		}
	}
	return out
}

// snapshot copies the entries, oldest first.
func (m *Manager) snapshot() []entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]entry, 0, len(m.entries))
	for _, e := range m.entries {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(x, y entry) int { return x.a.Created.Compare(y.a.Created) })
	return out
}

// get returns a copy of an entry.
func (m *Manager) get(key string) (entry, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[key]
	if !ok {
		return entry{}, false
	}
	return *e, true
}

func (m *Manager) forget(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, key)
}

// publish hands the attachment to the switch.
func (m *Manager) publish(a Attachment, dev device, located bool) error {
	if err := m.cfg.Publish(a, dev); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[a.Key()]
	e.a, e.dev, e.located = a, dev, located
	return nil
}

// Close detaches from the devices, which stay with their addresses for the next Restore, and closes the
// database. No worker may touch a port any more.
func (m *Manager) Close() error {
	var errs []error
	for _, e := range m.snapshot() {
		if e.dev != nil {
			errs = append(errs, e.dev.Close())
		}
	}
	m.removals.Wait()
	return errors.Join(append(errs, m.store.close())...)
}

// keyLocks holds one mutex per attachment that somebody works on.
type keyLocks struct {
	mu    sync.Mutex
	byKey map[string]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int // under keyLocks.mu
}

// lock returns the unlock function.
func (l *keyLocks) lock(key string) func() {
	l.mu.Lock()
	if l.byKey == nil {
		l.byKey = map[string]*keyLock{}
	}
	k := l.byKey[key]
	if k == nil {
		k = &keyLock{}
		l.byKey[key] = k
	}
	k.users++
	l.mu.Unlock()
	k.Lock()
	return func() {
		k.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.byKey, key)
		}
	}
}
