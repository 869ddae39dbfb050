package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Audited is what is known of one address, or of an attachment without any.
type Audited struct {
	Address    netip.Prefix `json:"address,omitzero"`
	VNI        uint32       `json:"vni"`
	Owner      string       `json:"owner"`      // the port's name; the attachment without a record
	Attachment string       `json:"attachment"` // "containerID/ifName"
	Record     bool         `json:"record"`
	Device     string       `json:"device"`              // in the pod; "" if it isn't there
	Netns      string       `json:"netns"`               // "" if it is gone
	Published  *bool        `json:"published,omitempty"` // in the switch; nil while no agent runs
	Wrong      []string     `json:"wrong,omitempty"`     // each with the way out
	Repaired   []string     `json:"repaired,omitempty"`
}

// Audit compares the records, the pools, the pods' devices in all network namespaces and what is published. With
// repair it removes devices without a record and records without a namespace, gives devices back what they lack,
// and releases addresses that nobody has. It may run beside ADD and DEL, of which it sees none half done.
func (m *Manager) Audit(ctx context.Context, repair bool) ([]Audited, error) {
	devices, err := scan()
	if err != nil {
		return nil, err
	}
	owned, err := m.store.load()
	if err != nil {
		return nil, err
	}
	var keys []string // in the order of their making
	for _, a := range owned {
		keys = append(keys, a.Key())
	}
	for _, d := range devices {
		if d.agent == m.agent {
			keys = append(keys, d.key)
		}
	}
	for _, n := range m.networks {
		for _, p := range n.pools {
			keys = append(keys, p.Owners()...)
		}
	}
	var rows []Audited
	seen := map[string]bool{}
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !seen[key] {
			seen[key] = true
			rows = append(rows, m.auditOne(ctx, key, devices, repair)...)
		}
	}
	return sharedAddresses(rows), nil
}

// AuditStopped is Audit of an agent that has ended, as its database and the devices show it.
func AuditStopped(ctx context.Context, stateDir string, repair bool) (rows []Audited, err error) {
	m := &Manager{cfg: Config{StateDir: stateDir, Log: slog.New(slog.DiscardHandler)}, entries: map[string]*entry{}, stopped: true}
	if m.agent, err = agentIDOf(stateDir); err != nil {
		return nil, err
	}
	if m.bootID, err = bootID(); err != nil {
		return nil, err
	}
	if m.store, err = openStore(filepath.Join(stateDir, database), lockWait); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.store.close()) }()
	records, err := m.store.load()
	if err != nil {
		return nil, err
	}
	for _, a := range records {
		m.entries[a.Key()] = &entry{a: a}
	}
	return m.Audit(ctx, repair)
}

// auditor looks at one attachment, on which nobody else works meanwhile.
type auditor struct {
	m      *Manager
	ctx    context.Context
	repair bool
	a      Attachment
	e      entry
	row    Audited
}

func (m *Manager) auditOne(ctx context.Context, key string, devices []found, repair bool) []Audited {
	defer m.locks.lock(key)()
	u := &auditor{m: m, ctx: ctx, repair: repair, row: Audited{Owner: key, Attachment: key}}
	e, known := m.get(key)
	recorded, err := m.store.has(key)
	switch {
	case err != nil:
		u.wrong("read its record: %v", err)
	case recorded && known:
		u.e, u.a = e, e.a
		u.row.Owner, u.row.VNI, u.row.Record = e.a.Name, e.a.VNI, true
		u.auditRecorded()
	case recorded: // the agent would have it among its entries
		u.wrong("the agent does not know its record: restart the agent")
	default:
		u.auditOrphans(key, devices)
		u.auditLeaks(key)
		if len(u.row.Wrong)+len(u.row.Repaired) == 0 {
			return nil // a DEL has ended since
		}
	}
	return u.rows()
}

// rows are one for each address.
func (u *auditor) rows() (rows []Audited) {
	for _, p := range u.a.Addresses {
		u.row.Address = p
		rows = append(rows, u.row)
	}
	if len(rows) == 0 {
		rows = append(rows, u.row)
	}
	return rows
}

func (u *auditor) wrong(format string, args ...any) {
	u.row.Wrong = append(u.row.Wrong, fmt.Sprintf(format, args...))
}

// mend repairs what is wrong, if that is wanted.
func (u *auditor) mend(what, done string, f func() error) {
	if !u.repair {
		u.wrong("%s ('tapyard ipam audit --repair': %s)", what, done)
	} else if err := f(); err != nil {
		u.wrong("%s; not %s: %v", what, done, err)
	} else {
		u.row.Repaired = append(u.row.Repaired, what+": "+done)
	}
}

func (u *auditor) auditRecorded() {
	if published := u.e.dev != nil; !u.m.stopped {
		u.row.Published = &published
	}
	fd, err := u.m.openRecorded(u.a)
	switch {
	case errors.Is(err, errGone) && u.e.dev != nil && !u.e.located:
		u.wrong("this agent has never seen its namespace at %s: mount the host's /run/netns into its container, or give that the host's processes", u.a.NetnsPath)
		return
	case errors.Is(err, errGone):
		u.mend(err.Error(), "detached", func() error {
			return u.m.del(context.WithoutCancel(u.ctx), Request{ContainerID: u.a.ContainerID, IfName: u.a.IfName, NetnsFD: -1})
		})
		return
	case err == nil:
		defer unix.Close(fd)
		u.row.Netns = u.a.NetnsPath
		err = u.auditDevice(fd)
	}
	if err != nil {
		u.wrong("%v", err)
	}
	if !u.m.stopped && u.e.dev == nil {
		u.wrong("the switch does not serve it: %v; create the pod anew, or mend that and restart the agent", cmp.Or(u.e.fail, errors.New("its restore failed, as the agent's log says")))
	}
}

// auditDevice compares the device with the record.
func (u *auditor) auditDevice(fd int) error {
	p, err := openPod(fd)
	if err != nil {
		return err
	}
	defer p.Close()
	link, err := p.ours(u.a.Key())
	if errors.Is(err, errGone) {
		return fmt.Errorf("%w from its namespace: delete the pod and create it anew", err)
	}
	if err != nil {
		return err
	}
	u.row.Device = link.Attrs().Name
	if mac := link.Attrs().HardwareAddr.String(); mac != u.a.MAC.String() {
		u.wrong("%s has MAC %s, its frames from there are dropped: set it to %v, or create the pod anew", u.row.Device, mac, u.a.MAC)
	}
	if link.Attrs().Alias != u.m.agent.alias(u.a) {
		u.mend(u.row.Device+"'s alias holds another copy of the record, or none", "written anew", func() error { return u.m.renewCopies(p, link, u.a) })
	}
	have, err := p.addresses(link)
	if err != nil {
		return err
	}
	for _, want := range u.a.Addresses {
		if !slices.Contains(have, want) {
			u.mend(fmt.Sprintf("%s lacks the address %v", u.row.Device, want), "configured anew", func() error { return p.configure(link, u.a) })
			break // that was all of them
		}
	}
	if u.a.PortType == Veth {
		host, err := hostEnd(u.a.Key())
		if err == nil && host == nil {
			err = fmt.Errorf("%s, the other end of %s, is not in the agent's network namespace: create the pod anew", u.a.HostIfName(), u.row.Device)
		}
		return err
	}
	return nil
}

// auditOrphans is about devices of an attachment without a record: a kill came before an ADD's record, or the
// agent was down when the pod was deleted.
func (u *auditor) auditOrphans(key string, devices []found) {
	for _, d := range devices {
		if d.key != key || d.agent != u.m.agent {
			continue
		}
		still, err := d.visit(func(*pod) error { return nil })
		if err != nil {
			u.wrong("%v", err)
		}
		if !still {
			continue
		}
		u.row.Device, u.row.Netns = d.name, d.path
		u.a.Addresses, u.row.VNI = d.a.Addresses, d.a.VNI
		u.mend(d.where()+" has no record", "removed", func() error {
			_, err := d.visit(func(p *pod) error { return p.remove(key) })
			return errors.Join(err, pruneGuards())
		})
	}
}

// visit calls f with the device's namespace if the device is still there.
func (d found) visit(f func(*pod) error) (still bool, err error) {
	fd, err := openNetns(cmp.Or(d.path, "/proc/thread-self/ns/net"))
	if err != nil {
		return false, nil // gone with its namespace
	}
	defer unix.Close(fd)
	if id, err := netnsOf(fd); err != nil || id != d.id {
		return false, nil
	}
	p, err := openPod(fd)
	if err != nil {
		return false, err
	}
	defer p.Close()
	if _, err := p.ours(d.key); errors.Is(err, errGone) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, f(p)
}

// auditLeaks is about addresses whose owner the agent doesn't know.
func (u *auditor) auditLeaks(key string) {
	for _, n := range u.m.networks {
		for _, p := range n.pools {
			if a, ok := p.Owned(key); ok {
				u.a.Addresses, u.row.VNI = append(u.a.Addresses, netip.PrefixFrom(a, p.Subnet().Bits())), n.vni
				u.mend(fmt.Sprintf("%v is set aside for an attachment that is not there", a), "released", func() error { p.Release(key); return nil })
			}
		}
	}
}

// sharedAddresses finds those that two records have.
func sharedAddresses(rows []Audited) []Audited {
	type place struct {
		vni  uint32
		addr netip.Addr
	}
	first := map[place]int{}
	for i, r := range rows {
		if !r.Record || !r.Address.IsValid() {
			continue
		}
		at := place{r.VNI, r.Address.Addr()}
		if j, taken := first[at]; taken {
			rows[i].Wrong = append(slices.Clone(r.Wrong), fmt.Sprintf("%s has the same address: delete one of the two pods", rows[j].Owner))
		} else {
			first[at] = i
		}
	}
	return rows
}
