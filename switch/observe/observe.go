// Package observe shows what the switch does: the admin API on a unix socket, and its client.
package observe

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/attach"
	"tapyard/switch/control"
	"tapyard/switch/drop"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Traffic counts one direction: frames in memory, wire frames that they stand for, bytes in memory.
type Traffic struct {
	Frames     uint64 `json:"frames"`
	WireFrames uint64 `json:"wire_frames"`
	Bytes      uint64 `json:"bytes"`
}

// Port is an entry of /v1/ports.
type Port struct {
	ID          port.ID      `json:"id"`
	Name        string       `json:"name"`
	Kind        string       `json:"kind"`
	VNI         uint32       `json:"vni"`
	Addresses   []netip.Addr `json:"addresses"`
	MAC         string       `json:"mac"`
	MTU         int          `json:"mtu"`
	Worker      int          `json:"worker"`  // of the first receive queue
	Workers     []int        `json:"workers"` // of each one
	Rx          Traffic      `json:"rx"`
	Tx          Traffic      `json:"tx"`
	Drops       uint64       `json:"drops"`
	KernelDrops uint64       `json:"kernel_drops"` // by the device's own ring, before rx
	LastError   string       `json:"last_error"`   // of the kernel, behind the last tx_error

	Bandwidth *attach.Bandwidth `json:"bandwidth,omitempty"` // a pod's limits, if it has any
}

// FDBEntry is an entry of /v1/fdb.
type FDBEntry struct {
	VNI    uint32   `json:"vni"`
	MAC    wire.MAC `json:"mac"`
	Port   string   `json:"port"`
	Static bool     `json:"static"`

	// Of learned entries only.
	Peer        string    `json:"peer,omitempty"`        // behind a tunnel
	LastSeen    time.Time `json:"last_seen,omitzero"`    // up to a second too early
	Moves       uint32    `json:"moves,omitempty"`       // between ports or peers, since it was learned
	FrozenUntil time.Time `json:"frozen_until,omitzero"` // it moved too often and is held where it is; perhaps past
}

// Neighbor is an entry of /v1/neighbors.
type Neighbor struct {
	VNI     uint32     `json:"vni"`
	Address netip.Addr `json:"address"`
	MAC     wire.MAC   `json:"mac"`
	Port    string     `json:"port"`
}

// Route is an entry of /v1/routes.
type Route struct {
	VNI    uint32       `json:"vni"`
	Prefix netip.Prefix `json:"prefix"`
	Kind   string       `json:"kind"` // forward, local, no_route or no_neighbor; the others are for forward
	Via    string       `json:"via"`  // destination MAC of the next hop
	MTU    int          `json:"mtu"`  // bytes of IP packet
	Port   string       `json:"port"`
	Peer   string       `json:"peer"` // behind a tunnel
}

// Peer is an entry of /v1/peers.
type Peer struct {
	Name       string         `json:"name"`
	Underlay   []netip.Addr   `json:"underlay"`
	PodSubnets []netip.Prefix `json:"podSubnets"`
	MAC        wire.MAC       `json:"mac"`
	Wire       string         `json:"wire"` // how super-frames cross to it; empty if no tunnel reaches it
}

// Drop is an entry of /v1/drops: what one port dropped for one reason.
type Drop struct {
	Port       string `json:"port"`
	Reason     string `json:"reason"`
	Frames     uint64 `json:"frames"`
	WireFrames uint64 `json:"wire_frames"`
	Explain    string `json:"explain"`

	// The last frame that was kept of them, one a second at most; it is absent when none was yet.
	Example      string     `json:"example,omitempty"`       // in words
	ExampleAt    time.Time  `json:"example_at,omitzero"`     // when it was dropped
	ExampleBytes int        `json:"example_bytes,omitempty"` // its length; of a packet that got ICMP, of the copy
	ExampleHead  string     `json:"example_head,omitempty"`  // its first bytes in hex
	ExampleFrom  netip.Addr `json:"example_from,omitzero"`   // underlay address of a datagram that is no peer's frame
}

// Offload is an entry of /v1/offloads: what a port takes whole, of which the switch does the rest in software, and how
// it is read and written.
type Offload struct {
	Port                           string `json:"port"`
	Checksum, TSO4, TSO6, ECN, USO bool
	Trains                         string `json:"trains"` // of a tunnel: how the kernel takes and gives several datagrams at once

	// Of TAPs, and empty for others. The times are those of the trial at start: CPU time of a small frame between
	// two TAPs by each engine, in nanoseconds, or 0 without one.
	Engine       port.Engine `json:"engine"`
	EngineReason string      `json:"engine_reason"`
	ReadWrite    int64       `json:"readwrite_ns"`
	IOUring      int64       `json:"io_uring_ns"`
	OneQueue     string      `json:"one_queue,omitempty"` // why a device that is to have several has one
}

// Worker is an entry of /v1/workers: a thread that moves frames.
type Worker struct {
	ID         int     `json:"id"`
	Thread     int     `json:"thread"` // its number in the kernel
	Queues     int     `json:"queues"` // receive queues that it polls
	Taken      uint64  `json:"taken"`  // queues that it took over from busier workers
	Rx         Traffic `json:"rx"`
	RxShare    float64 `json:"rx_share"` // of all workers' frames, 0 to 1
	CPUSeconds float64 `json:"cpu_seconds"`
	Busy       float64 `json:"busy"` // share of the last half second, or less, in which it ran or waited for a core
}

// Ledger is /v1/ledger.
type Ledger struct {
	Account
	PoolLive int64   `json:"pool_live"`
	Wire     Account `json:"wire"`
}

// Account is the ledger in one unit.
type Account struct {
	Rx         uint64 `json:"rx"`
	Originated uint64 `json:"originated"`
	Copied     uint64 `json:"copied"`
	Split      uint64 `json:"split"`
	Tx         uint64 `json:"tx"`
	Merged     uint64 `json:"merged"`
	Consumed   uint64 `json:"consumed"`
	Drops      uint64 `json:"drops"`
	InFlight   int64  `json:"in_flight"`
}

// Source is where the views come from. VTEPs is nil on a node without tunnels.
type Source struct {
	Switch   *vswitch.Switch
	Attached func() []attach.Attachment
	State    func() control.State
	VTEPs    *encap.VTEPTable
	Node     func() control.Node
	HostMAC  wire.MAC
	Config   func() any        // the effective configuration, for /v1/config
	Engine   port.EngineChoice // of TAPs
	Audit    func(ctx context.Context, repair bool) ([]attach.Audited, error)
	Reload   http.HandlerFunc // of the configuration; nil: there is none
}

// Ports returns the attached ports.
func (s *Source) Ports() []Port {
	pods, node, ports := s.pods(), s.Node(), []Port{}
	for _, v := range s.Switch.Ports() {
		if v.Port == nil { // the switch itself
			continue
		}
		p := Port{ID: v.ID, Name: v.Port.Name(), Kind: v.Port.Kind(), VNI: v.VNI, Workers: v.Workers,
			Rx: Traffic{v.Rx.Frames, v.Rx.Wire, v.RxBytes}, Tx: Traffic{v.Tx.Frames, v.Tx.Wire, v.TxBytes}}
		if len(v.Workers) > 0 {
			p.Worker = v.Workers[0]
		}
		for _, d := range v.Drops {
			p.Drops += d.Frames
		}
		if d, ok := v.Port.(port.Dropper); ok {
			p.KernelDrops, _ = d.KernelDrops() // a device that is just going has none
		}
		if e, ok := v.Port.(interface{ LastError() error }); ok && e.LastError() != nil {
			p.LastError = e.LastError().Error()
		}
		if d, ok := v.Port.(interface{ Gone() bool }); ok && d.Gone() {
			p.LastError = "the device is gone; restart the agent when it is back"
		}
		s.identify(&p, v, &node, pods)
		ports = append(ports, p)
	}
	return ports
}

// pods returns the attachments by port name.
func (s *Source) pods() map[string]attach.Attachment {
	pods := map[string]attach.Attachment{}
	for _, a := range s.Attached() {
		pods[a.Name] = a
	}
	return pods
}

// identify fills in whose port it is.
func (s *Source) identify(p *Port, v vswitch.PortView, node *control.Node, pods map[string]attach.Attachment) {
	switch v.Role {
	case vswitch.RoleHost:
		p.MAC, p.MTU = s.HostMAC.String(), node.MTU
		for _, subnet := range node.PodSubnets {
			p.Addresses = append(p.Addresses, attach.Gateway(subnet))
		}
	case vswitch.RoleAccess:
		if a, isPod := pods[p.Name]; isPod {
			p.MAC, p.MTU, p.Addresses, p.Bandwidth = a.MAC.String(), a.MTU, a.Addrs(), a.Bandwidth
		} else if uplink, err := net.InterfaceByName(p.Name); err == nil { // one that is gone has neither
			p.MAC, p.MTU = uplink.HardwareAddr.String(), uplink.MTU
		}
	case vswitch.RoleTunnel:
		p.MAC, p.MTU, p.Addresses = node.RouterMAC.String(), node.TunnelMTU, node.Underlay[:1]
	}
}

func (s *Source) portNames() map[port.ID]string {
	names := map[port.ID]string{port.Local: "switch"}
	for _, v := range s.Switch.Ports() {
		if v.Port != nil {
			names[v.ID] = v.Port.Name()
		}
	}
	return names
}

// FDB returns the MAC table.
func (s *Source) FDB() []FDBEntry {
	names, entries := s.portNames(), []FDBEntry{}
	for _, e := range s.Switch.FDB() {
		entry := FDBEntry{VNI: e.VNI, MAC: e.MAC, Port: names[e.Dest.Port], Static: e.Static, Peer: s.peerName(e.Dest.Peer)}
		if !e.Static {
			entry.LastSeen, entry.Moves = time.Unix(0, e.LastSeen).UTC(), e.Moves
		}
		if e.FrozenUntil != 0 {
			entry.FrozenUntil = time.Unix(0, e.FrozenUntil).UTC()
		}
		entries = append(entries, entry)
	}
	return entries
}

// peerName returns "" for 0, which is no peer.
func (s *Source) peerName(index uint32) string {
	if index == 0 {
		return ""
	}
	if p := s.VTEPs.Lookup(index); p != nil {
		return p.Name
	}
	return "" // it left since
}

// Neighbors returns the addresses that the switch answers for.
func (s *Source) Neighbors() []Neighbor {
	names, entries := s.portNames(), []Neighbor{}
	for _, e := range s.Switch.Neighbors() {
		entries = append(entries, Neighbor{e.VNI, e.Addr, e.MAC, names[e.Port]})
	}
	return entries
}

// Routes returns the routing tables.
func (s *Source) Routes() []Route {
	names, routes := s.portNames(), []Route{}
	for _, r := range s.Switch.Routes() {
		route := Route{VNI: r.VNI, Prefix: r.Prefix, Kind: r.Adjacency.Kind.String()}
		if r.Adjacency.Kind == vswitch.AdjForward {
			s.forward(&route, &r.Adjacency, names)
		}
		routes = append(routes, route)
	}
	return routes
}

func (s *Source) forward(r *Route, adj *vswitch.Adjacency, names map[port.ID]string) {
	r.Via, r.MTU, r.Port = adj.DstMAC.String(), int(adj.MTU), names[adj.Dest.Port]
	if adj.Tunnel {
		r.Peer = s.peerName(adj.Dest.Peer)
	}
}

// Peers returns the other nodes.
func (s *Source) Peers() []Peer {
	self, peers := s.Node().Name, []Peer{}
	for _, p := range s.State().Peers {
		if p.Name != self {
			peers = append(peers, Peer{p.Name, p.Underlay, p.PodSubnets, p.RouterMAC(), s.wireTo(p.Name)})
		}
	}
	return peers
}

func (s *Source) wireTo(peer string) string {
	if p := s.VTEPs.LookupName(peer); p != nil {
		return p.Wire()
	}
	return ""
}

// Drops returns what was dropped and why, the most frequent first. Drops of the ports that are gone stay
// in the ledger.
func (s *Source) Drops() []Drop {
	names, pods, drops := s.portNames(), s.pods(), []Drop{}
	for _, v := range s.Switch.Ports() {
		pod, isPod := pods[names[v.ID]]
		for n, count := range v.Drops {
			if count.Frames == 0 {
				continue
			}
			r := drop.Reason(n)
			d := Drop{Port: names[v.ID], Reason: r.String(), Frames: count.Frames, WireFrames: count.Wire, Explain: r.Explain()}
			if e := v.Examples[r]; e != nil {
				d.show(r, e)
				if v.Role == vswitch.RoleTunnel && !e.From.IsValid() {
					d.Example = s.throughTunnel(e) + d.Example
				}
				if isPod {
					d.Example += describeClaim(r, e, pod.MAC, pod.Addrs())
				}
			}
			drops = append(drops, d)
		}
	}
	slices.SortStableFunc(drops, func(a, b Drop) int { return cmp.Compare(b.Frames, a.Frames) })
	return drops
}

// throughTunnel says in which network a frame was, and which peer it was from or to, unless that has left.
func (s *Source) throughTunnel(e *port.Example) string {
	if p := s.VTEPs.Lookup(e.Peer); p != nil {
		return fmt.Sprintf("VNI %d, peer %s: ", e.VNI, p.Name)
	}
	return fmt.Sprintf("VNI %d: ", e.VNI)
}

func (d *Drop) show(r drop.Reason, e *port.Example) {
	d.Example, d.ExampleAt = describe(r, e), time.Unix(0, e.At).UTC()
	d.ExampleBytes, d.ExampleHead, d.ExampleFrom = e.Len, hex.EncodeToString(e.Head), e.From
}

// Offloads returns what the ports take whole, and how they are read and written.
func (s *Source) Offloads() []Offload {
	offloads := []Offload{}
	for _, v := range s.Switch.Ports() {
		if v.Port == nil { // the switch itself
			continue
		}
		c := v.Port.Caps()
		o := Offload{Port: v.Port.Name(), Checksum: c&port.CapCsum != 0, TSO4: c&port.CapTSO4 != 0,
			TSO6: c&port.CapTSO6 != 0, ECN: c&port.CapTSOECN != 0, USO: c&port.CapUSO != 0}
		if tap, ok := v.Port.(interface{ Engine() port.Engine }); ok {
			o.Engine, o.EngineReason = tap.Engine(), s.Engine.Reason
			o.ReadWrite, o.IOUring = s.Engine.ReadWrite.Nanoseconds(), s.Engine.IOUring.Nanoseconds()
		}
		if t, ok := v.Port.(*encap.Tunnel); ok {
			o.Trains = t.Trains()
		}
		if tap, ok := v.Port.(interface{ Unsteered() error }); ok && tap.Unsteered() != nil {
			o.OneQueue = tap.Unsteered().Error()
		}
		offloads = append(offloads, o)
	}
	return offloads
}

// Workers returns the workers, so that one that does the work of all shows.
func (s *Source) Workers() []Worker {
	workers, total := []Worker{}, uint64(0)
	for _, v := range s.Switch.WorkerViews() {
		workers = append(workers, Worker{ID: v.ID, Thread: v.Thread, Queues: v.Queues, Taken: v.Taken,
			Rx: Traffic{v.Rx.Frames, v.Rx.Wire, v.RxBytes}, CPUSeconds: v.CPU.Seconds(), Busy: v.Busy})
		total += v.Rx.Frames
	}
	for i := range workers {
		workers[i].RxShare = float64(workers[i].Rx.Frames) / float64(max(total, 1))
	}
	return workers
}

// Ledger returns the account of all frames.
func (s *Source) Ledger() Ledger {
	l := s.Switch.Ledger()
	frames, wireFrames := l.InFlight()
	return Ledger{
		Account: Account{l.Rx.Frames, l.Originated.Frames, l.Copied.Frames, l.Split.Frames,
			l.Tx.Frames, l.Merged.Frames, l.Consumed.Frames, l.Drops.Frames, frames},
		PoolLive: l.PoolLive,
		Wire: Account{l.Rx.Wire, l.Originated.Wire, l.Copied.Wire, l.Split.Wire,
			l.Tx.Wire, l.Merged.Wire, l.Consumed.Wire, l.Drops.Wire, wireFrames},
	}
}
