package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"tapyard/switch/fdb"
	"tapyard/switch/flow"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// MemoryForm is the version of what Remember writes. Change it with the form: a build reads its own only.
const MemoryForm = 1

// Remember appends what frames have taught the switch, for the one of the next process: the stations that were learned
// and the connections that are tracked. What the control plane knows isn't in it, such as pods, neighbours and routes.
// Ports and peers have other numbers there, so they go by name; peer names those of tunnels.
//
//	ports: count 16, each length 8 and name | peers: the same | stations: count 32, then they | flows: count 32, then they
//	station: seen 64 (ns), VNI 32, port 16 and peer 16 (their places among the names, from 1; 0 is no peer), MAC 48
//	flow: from and to 128 each, their ports 16 each, VNI 32, seen 32 (s), owner 16 (a place), protocol 8, state 8, family 8
//
// Numbers are in network byte order.
func (sw *Switch) Remember(b []byte, peer func(index uint32) string) []byte {
	e := encoder{ports: names{at: map[uint32]uint16{}}, peers: names{at: map[uint32]uint16{}}}
	snap := sw.snapshot.Load()
	name := func(id uint32) string {
		if ps := snap.port(port.ID(id)); ps != nil && ps.port != nil {
			return ps.port.Name()
		}
		return "" // it has left since
	}
	for _, s := range sw.fdb.Entries() {
		if !s.Static {
			e.station(&s, name, peer)
		}
	}
	if snap.flows != nil {
		for f := range snap.flows.All(sw.now().UnixNano()) {
			e.flow(&f, name)
		}
	}
	b = e.peers.append(e.ports.append(b))
	b = append(binary.BigEndian.AppendUint32(b, e.stations), e.stationBytes...)
	return append(binary.BigEndian.AppendUint32(b, e.flows), e.flowBytes...)
}

const stationLen, flowLen = 8 + 4 + 2 + 2 + 6, 2*16 + 2*2 + 4 + 4 + 2 + 3

// names numbers names in the order of their first use, from 1.
type names struct {
	list []string
	at   map[uint32]uint16
}

// place returns the number of what id is called, or 0 for nothing.
func (n *names) place(id uint32, name func(uint32) string) uint16 {
	place, known := n.at[id]
	if s := ""; !known {
		if s = name(id); s != "" && len(s) < 1<<8 && len(n.list) < 1<<16-1 {
			n.list = append(n.list, s)
			place = uint16(len(n.list))
		}
		n.at[id] = place
	}
	return place
}

func (n *names) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(n.list)))
	for _, s := range n.list {
		b = append(append(b, byte(len(s))), s...)
	}
	return b
}

type encoder struct {
	ports, peers            names
	stations, flows         uint32
	stationBytes, flowBytes []byte
}

func (e *encoder) station(s *fdb.Entry, name, peer func(uint32) string) {
	at, behind := e.ports.place(uint32(s.Dest.Port), name), uint16(0)
	if s.Dest.Peer != 0 {
		behind = e.peers.place(s.Dest.Peer, peer)
	}
	if at == 0 || s.Dest.Peer != 0 && behind == 0 {
		return
	}
	b := binary.BigEndian.AppendUint64(e.stationBytes, uint64(s.LastSeen))
	b = binary.BigEndian.AppendUint32(b, s.VNI)
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, at), behind)
	e.stationBytes = append(b, s.MAC[:]...)
	e.stations++
}

func (e *encoder) flow(f *flow.Entry, name func(uint32) string) {
	owner := e.ports.place(uint32(f.Owner), name)
	if owner == 0 {
		return
	}
	from, to, family := f.From.Addr().As16(), f.To.Addr().As16(), byte(6)
	if f.From.Addr().Is4() {
		family = 4
	}
	b := append(append(e.flowBytes, from[:]...), to[:]...)
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, f.From.Port()), f.To.Port())
	b = binary.BigEndian.AppendUint32(b, f.VNI)
	b = binary.BigEndian.AppendUint32(b, uint32(f.LastSeen))
	b = binary.BigEndian.AppendUint16(b, owner)
	e.flowBytes = append(b, f.Proto, byte(f.State), family)
	e.flows++
}

// Recalled says what of a memory is in the switch again.
type Recalled struct{ Stations, Flows, Forgotten int }

// Recall brings back what another switch remembers, before Start and after ports and peers are there: what is behind
// others is forgotten, as is what has aged. peer returns a peer's index, or 0. An error means that the memory is
// damaged, and nothing of it was used.
func (sw *Switch) Recall(b []byte, peer func(name string) uint32) (r Recalled, err error) {
	d := decoder{rest: b}
	ports, peers := d.names(), d.names()
	stations := d.records(stationLen)
	flows := d.records(flowLen)
	if d.bad || len(d.rest) > 0 {
		return r, errors.New("the memory of the last process is damaged: its parts don't add up")
	}
	snap := sw.snapshot.Load()
	ids := make([]port.ID, len(ports)+1) // Local is nobody's
	for i, name := range ports {
		for _, ps := range snap.ports[1:] {
			if ps != nil && ps.port.Name() == name {
				ids[i+1] = ps.id
			}
		}
	}
	indexes := make([]uint32, len(peers)+1)
	for i, name := range peers {
		indexes[i+1] = peer(name)
	}
	for ; len(stations) > 0; stations = stations[stationLen:] {
		r.count(&r.Stations, sw.recallStation(stations[:stationLen], ids, indexes))
	}
	for ; len(flows) > 0; flows = flows[flowLen:] {
		r.count(&r.Flows, sw.recallFlow(snap, flows[:flowLen], ids))
	}
	return r, nil
}

func (r *Recalled) count(n *int, known bool) {
	if !known {
		n = &r.Forgotten
	}
	*n++
}

// recallStation says whether the station is known again.
func (sw *Switch) recallStation(b []byte, ids []port.ID, indexes []uint32) bool {
	seen, at, behind := int64(binary.BigEndian.Uint64(b)), int(binary.BigEndian.Uint16(b[12:])), int(binary.BigEndian.Uint16(b[14:]))
	if at >= len(ids) || behind >= len(indexes) || ids[at] == port.Local || behind > 0 && indexes[behind] == 0 {
		return false
	}
	age := sw.now().UnixNano() - seen
	if ageing := sw.fdb.Ageing(); age < 0 || ageing > 0 && age >= int64(ageing) {
		return false
	}
	d := port.Dest{Port: ids[at], Peer: indexes[behind]}
	outcome, _ := sw.fdb.Learn(seen, binary.BigEndian.Uint32(b[8:]), wire.MAC(b[16:]), d)
	return outcome == fdb.Added
}

// recallFlow says whether the connection is known again.
func (sw *Switch) recallFlow(snap *Snapshot, b []byte, ids []port.ID) bool {
	owner := int(binary.BigEndian.Uint16(b[44:]))
	if snap.flows == nil || owner >= len(ids) || ids[owner] == port.Local {
		return false
	}
	from, to := netip.AddrFrom16([16]byte(b)), netip.AddrFrom16([16]byte(b[16:]))
	if b[48] == 4 {
		from, to = from.Unmap(), to.Unmap()
	}
	e := flow.Entry{
		From: netip.AddrPortFrom(from, binary.BigEndian.Uint16(b[32:])), To: netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[34:])),
		VNI: binary.BigEndian.Uint32(b[36:]), LastSeen: int64(binary.BigEndian.Uint32(b[40:])),
		Owner: uint16(ids[owner]), Proto: b[46], State: flow.State(b[47]),
	}
	return snap.flows.Restore(sw.now().UnixNano(), &e, snap.port(ids[owner]).flows())
}

// decoder takes parts off what is left. After something that isn't there, bad is set and all that follows is empty.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n > len(d.rest) {
		d.bad = true
		return make([]byte, min(n, 8)) // a count of 0
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) names() (list []string) {
	for range binary.BigEndian.Uint16(d.take(2)) {
		if d.bad {
			break
		}
		list = append(list, string(d.take(int(d.take(1)[0]))))
	}
	return list
}

// records returns the bytes of as many records of that size as are said to be there.
func (d *decoder) records(size int) []byte {
	n := int(binary.BigEndian.Uint32(d.take(4)))
	if d.bad || n > len(d.rest)/size {
		d.bad = true
		return nil
	}
	return d.take(n * size)
}

// String says it for a log.
func (r Recalled) String() string {
	return fmt.Sprintf("%d stations and %d flows, %d forgotten", r.Stations, r.Flows, r.Forgotten)
}
