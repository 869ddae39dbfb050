package fdb

import (
	"sync/atomic"
	"time"
)

// When a MAC moves FreezeMoves times in less than FreezeWindow, the last of these moves freezes it: it stays
// there until FreezeTime after that move. The first two are N and M of RFC 7432 section 15.1; the third is M
// again, where the RFC waits for the operator. What ages or is deleted takes its history along, so a station
// that falls silent, or whose port goes, is learned elsewhere at once.
const (
	FreezeMoves  = 5
	FreezeWindow = 180 * time.Second
	FreezeTime   = FreezeWindow
)

// touchEvery is how exactly ages are kept. Were each burst to write, the workers that hear a station would
// pass its cache line around.
const touchEvery = int64(time.Second)

// life is what a learned entry is beside its destination: immutable but for lastSeen, so that readers need no
// lock. A move makes a new one; a touch of the old one by a reader that comes too late is lost with it.
type life struct {
	lastSeen atomic.Int64 // Unix time in nanoseconds
	moves    *moves
}

func newLife(now int64, m *moves) *life {
	l := &life{moves: m}
	l.lastSeen.Store(now)
	return l
}

// touch notes that the station was seen, if that is news. A clock that was set back is news too.
func (l *life) touch(now int64) {
	if age := now - l.lastSeen.Load(); age >= touchEvery || age <= -touchEvery {
		l.lastSeen.Store(now)
	}
}

// due says whether the station has been silent for so long. One that was seen in the future, before the clock was
// set back, counts as seen now.
func (l *life) due(now int64, ageing time.Duration) bool {
	age := now - l.lastSeen.Load()
	if age <= -touchEvery {
		l.lastSeen.Store(now)
	}
	return age >= int64(ageing)
}

// moves is the history of an entry's moves, immutable.
type moves struct {
	total  uint32
	latest [FreezeMoves]int64 // when the latest ones were, Unix time in nanoseconds, the latest last
}

// never is the history of everything that has not moved.
var never moves

// with returns the history with one move more.
func (m *moves) with(now int64) *moves {
	next := &moves{total: m.total + 1}
	copy(next.latest[:], m.latest[1:])
	next.latest[FreezeMoves-1] = now
	return next
}

// freezes says whether the last move was one too many.
func (m *moves) freezes() bool {
	return m.total >= FreezeMoves && within(m.latest[FreezeMoves-1]-m.latest[0], FreezeWindow)
}

func (m *moves) frozen(now int64) bool {
	return m.freezes() && within(now-m.latest[FreezeMoves-1], FreezeTime)
}

func (m *moves) frozenUntil() int64 {
	if !m.freezes() {
		return 0
	}
	return m.latest[FreezeMoves-1] + int64(FreezeTime)
}

// within says whether a time that has passed is less than d. A negative one, since the clock was set back, isn't.
func within(passed int64, d time.Duration) bool { return uint64(passed) < uint64(d) }

// Expire removes the learned entries that have aged and returns their number. Call it once a second: it looks at
// every entry, without the lock, which is taken for each one that goes.
func (t *Table) Expire(now int64) (removed int) {
	ageing := t.Ageing()
	if ageing == 0 {
		return 0
	}
	due := func(r record) bool { return !r.static() && r.life.due(now, ageing) }
	for k, r := range t.entries.All() {
		// Looked at again under the lock: it may have moved, or have been seen.
		if due(r) && t.deleteIf(k, due) {
			removed++
		}
	}
	return removed
}
