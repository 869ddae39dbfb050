package flow

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Entry is a flow as operators see it.
type Entry struct {
	VNI      uint32
	Proto    uint8          // wire.ProtoTCP, ProtoUDP, ProtoICMPv4 or ProtoICMPv6
	From, To netip.AddrPort // From has opened it; the port of an echo is its identifier
	State    State
	Owner    uint16
	LastSeen int64 // Unix time in seconds, to the second
	Timeout  int32 // seconds of silence after which it is forgotten
}

// Entries returns the limit flows that were heard last of those that keep holds for, the most recent first. now is
// Unix time in nanoseconds. It reads the whole table, and keeps at most 2 limit entries at a time.
func (t *Table) Entries(now int64, limit int, keep func(*Entry) bool) []Entry {
	second, list := uint32(now/1e9), []Entry{}
	for slot := range t.entries {
		e, ok := t.entries[slot].read(second)
		if !ok || !keep(&e) {
			continue
		}
		if list = append(list, e); len(list) >= 2*limit {
			list = latest(list, limit)
		}
	}
	return latest(list, limit)
}

func latest(list []Entry, limit int) []Entry {
	slices.SortFunc(list, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(b.LastSeen, a.LastSeen), cmp.Compare(a.VNI, b.VNI), a.From.Compare(b.From), a.To.Compare(b.To), cmp.Compare(a.Proto, b.Proto))
	})
	return list[:min(limit, len(list))]
}

// read returns the flow, if there is one that hasn't expired, and none takes its place meanwhile.
func (e *entry) read(second uint32) (out Entry, ok bool) {
	before := e.state.Load()
	if before&phaseMask != live {
		return out, false
	}
	var key [keyWords]uint64
	for i := range key {
		key[i] = e.key[i].Load()
	}
	owner, s := e.owner.Load(), e.state.Load()
	if (s^before)&identity != 0 || expired(s, second) {
		return out, false
	}
	decode := key4
	if s&familyIPv6 != 0 {
		decode = key6
	}
	low, high := decode(&key, &out)
	if openerOf(s) == 1 {
		low, high = high, low
	}
	out.From, out.To, out.State, out.Owner, out.Timeout = low, high, connOf(s), uint16(owner), timeouts[connOf(s)]
	out.LastSeen = int64(uint32(s))
	return out, true
}

// key4 and key6 are the inverse of fill4 and fill6.
func key4(key *[keyWords]uint64, out *Entry) (low, high netip.AddrPort) {
	out.VNI, out.Proto = uint32(key[0]&0xffff<<8|key[1]>>8&0xff), uint8(key[1])
	end := func(w uint64) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(w>>32)))), uint16(w>>16))
	}
	return end(key[0]), end(key[1])
}

func key6(key *[keyWords]uint64, out *Entry) (low, high netip.AddrPort) {
	out.VNI, out.Proto = uint32(key[4]>>8)&0xffffff, uint8(key[4])
	end := func(hi, lo uint64, port uint16) netip.AddrPort {
		var a [16]byte
		binary.BigEndian.PutUint64(a[:8], hi)
		binary.BigEndian.PutUint64(a[8:], lo)
		return netip.AddrPortFrom(netip.AddrFrom16(a), port)
	}
	return end(key[0], key[1], uint16(key[4]>>48)), end(key[2], key[3], uint16(key[4]>>32))
}
