package flow

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"tapyard/bench/seed"
	"tapyard/switch/wire"
)

// model is the table as a slow one would be: a list, and rules in words.
type model struct {
	flows    []Entry
	capacity int

	evicted, refused uint64
}

const (
	fFIN, fSYN, fRST, fPSH, fACK = 1, 2, 4, 8, 16
)

func (m *model) track(second int64, c talk, back bool, flags uint8, owner Owner) {
	m.forget(func(e *Entry) bool { return second-e.LastSeen >= int64(e.Timeout) })
	if back {
		c = c.reversed()
	}
	begins := c.proto == wire.ProtoTCP && flags&(fSYN|fFIN|fRST|fACK) == fSYN
	m.forget(func(e *Entry) bool {
		return begins && (key(e) == c || key(e) == c.reversed()) && (e.State == Closed || e.State == Reset)
	})
	for i := range m.flows {
		e := &m.flows[i]
		if key(e) != c && key(e) != c.reversed() {
			continue
		}
		if c.proto == wire.ProtoTCP {
			e.State = step(e.State, key(e) == c, flags)
		} else if key(e) != c {
			e.State = map[bool]State{true: Replied, false: EchoReplied}[c.proto == wire.ProtoUDP]
		}
		e.LastSeen, e.Timeout = second, silence(e.State)
		return
	}
	m.insert(second, c, flags, owner)
}

func (m *model) insert(second int64, c talk, flags uint8, owner Owner) {
	e := Entry{VNI: c.vni, Proto: c.proto, From: c.from, To: c.to, State: Unreplied, Owner: owner.ID, LastSeen: second}
	if c.proto == wire.ProtoTCP {
		switch flags & (fSYN | fFIN | fRST | fACK) {
		case fSYN:
			e.State = Opening
		case fSYN | fACK:
			e.State, e.From, e.To = Answered, c.to, c.from
		case fACK:
			e.State = Midway
		default:
			return
		}
	}
	e.Timeout = silence(e.State)
	owned := 0
	for _, o := range m.flows {
		if o.Owner == owner.ID {
			owned++
		}
	}
	if owned >= owner.Share {
		m.refused++
		return
	}
	if len(m.flows) == m.capacity && !m.evict() {
		m.refused++
		return
	}
	m.flows = append(m.flows, e)
}

// evict forgets the one that was silent for longest, but none that both sides keep up.
func (m *model) evict() bool {
	victim := -1
	for i, e := range m.flows {
		keeps := e.State == Established || e.State == Replied || e.State == OpenerClosing || e.State == AnswererClosing
		if !keeps && (victim < 0 || e.LastSeen < m.flows[victim].LastSeen) {
			victim = i
		}
	}
	if victim < 0 {
		return false
	}
	m.flows = slices.Delete(m.flows, victim, victim+1)
	m.evicted++
	return true
}

func (m *model) forget(gone func(*Entry) bool) {
	m.flows = slices.DeleteFunc(m.flows, func(e Entry) bool { return gone(&e) })
}

func silence(s State) int32 {
	switch s {
	case Established:
		return 8000
	case Answered:
		return 60
	case Reset:
		return 10
	case Unreplied, EchoReplied:
		return 30
	}
	return 120
}

// step is what a segment does to a connection.
func step(s State, fromOpener bool, flags uint8) State {
	isSYN, isACK := flags&fSYN != 0, flags&fACK != 0
	switch {
	case flags&fRST != 0 || s == Reset:
		return Reset
	case s == Closed:
		return Closed
	case flags&fFIN != 0:
		return closing(s, fromOpener)
	case s == Opening && !fromOpener && isSYN:
		return Answered
	case s == Midway && !fromOpener && isSYN && isACK:
		return Answered
	case s == Midway && fromOpener && isSYN && !isACK:
		return Opening
	case s == Midway && !fromOpener && isACK && !isSYN, s == Answered && fromOpener && isACK && !isSYN:
		return Established
	}
	return s
}

func closing(s State, byOpener bool) State {
	switch {
	case s == Opening: // nothing was opened
		return s
	case s == AnswererClosing && byOpener, s == OpenerClosing && !byOpener:
		return Closed
	case s == OpenerClosing, s == AnswererClosing:
		return s
	case byOpener:
		return OpenerClosing
	}
	return AnswererClosing
}

var protocols = map[bool][]uint8{true: {wire.ProtoTCP, wire.ProtoUDP, wire.ProtoICMPv4}, false: {wire.ProtoTCP, wire.ProtoUDP, wire.ProtoICMPv6}}

// randomTalk is one of some dozens, among them such as differ in one field only.
func randomTalk(r *rand.Rand) talk {
	pool := [][]string{{"10.0.0.1", "10.0.0.2", "10.0.1.1"}, {"fd00::1", "fd00::2", "fd00:0:0:1::1"}}[r.IntN(2)]
	from := netip.MustParseAddr(pool[r.IntN(3)])
	to := netip.MustParseAddr(pool[r.IntN(3)])
	c := talk{vni: []uint32{1, 0xffffff}[r.IntN(2)], proto: protocols[from.Is4()][r.IntN(3)]}
	ports := []uint16{0, 80, 40000}
	c.from, c.to = netip.AddrPortFrom(from, ports[r.IntN(3)]), netip.AddrPortFrom(to, ports[r.IntN(3)])
	if c.proto != wire.ProtoTCP && c.proto != wire.ProtoUDP {
		c.to = netip.AddrPortFrom(to, c.from.Port())
	}
	if c.from == c.to { // a frame has no direction then
		return randomTalk(r)
	}
	return c
}

// TestModel has the table and the model hear the same, with a clock that jumps. A table of 16 places has two
// buckets, so every key may be in every place, and it is full all the time. Shares count what is dead until it is
// swept, so with shares the test sweeps all the time.
func TestModel(t *testing.T) {
	for name, c := range map[string]struct {
		capacity int
		shares   []int
	}{"full": {16, []int{1000}}, "full, with shares": {16, []int{6, 200}}, "roomy, with shares": {512, []int{5, 400}}} {
		t.Run(name, func(t *testing.T) {
			r := seed.Rand(t)
			table, m, now := New(c.capacity, 3), &model{capacity: c.capacity}, int64(1_700_000_000)
			steps := 20000
			if testing.Short() {
				steps = 3000
			}
			talk := randomTalk(r)
			for range steps {
				now++
				if c.capacity > 16 { // several frames in a second; who is evicted is certain only if no two are
					now -= int64(r.IntN(2))
				}
				if r.IntN(50) == 0 {
					now += []int64{3, 40, 9000}[r.IntN(3)]
				}
				m.forget(func(e *Entry) bool { return now-e.LastSeen >= int64(e.Timeout) })
				for range sweepParts * min(len(c.shares)-1, 1) {
					table.Expire(now * 1e9)
				}
				owner := Owner{uint16(r.IntN(3)), c.shares[r.IntN(len(c.shares))]}
				if r.IntN(4) == 0 || c.capacity == 16 { // otherwise one goes on
					talk = randomTalk(r)
				}
				back, flags := r.IntN(2) == 0, []uint8{fSYN, fSYN | fACK, fACK, fACK | fPSH, fFIN | fACK, fRST, fPSH, fSYN | fFIN}[r.IntN(8)]
				m.track(now, talk, back, flags, owner)
				track(table, now, owner, talk.heard(t, back, flags))
				if got, want := table.Entries(now*1e9, 1000, all), latest(m.flows, 1000); !slices.Equal(got, want) {
					t.Fatalf("behind %+v back %v flags %#x:\n got %+v\nwant %+v", talk, back, flags, got, want)
				}
				if s := table.Stats(); s.Evicted != m.evicted || s.Refused != m.refused {
					t.Fatalf("%+v; the model evicted %d and refused %d", s, m.evicted, m.refused)
				}
			}
			s := table.Stats()
			if live := int(s.Created - s.Ended - s.Evicted); s.Live != live {
				t.Errorf("%+v: %d should be live", s, live)
			}
			if s.Ended == 0 || len(c.shares) > 1 && s.Refused == 0 || c.capacity == 16 && s.Evicted == 0 {
				t.Errorf("%+v: nothing was ended, refused or evicted", s)
			}
		})
	}
}
