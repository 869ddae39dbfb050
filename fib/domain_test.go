package fib

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tapyard/bench/seed"
)

// TestDomainModel drives readers and callbacks at random and compares with the definition: a callback runs
// once every reader that was online at its Retire has passed a quiescent point, gone offline or closed, and
// at the next Retire or Reclaim at the latest; in order.
func TestDomainModel(t *testing.T) {
	r := seed.Rand(t)
	for range scaled(2000) {
		var d Domain
		type member struct {
			*Reader
			online bool
		}
		type callback struct {
			blockers map[*Reader]bool
			ran      int
		}
		var members []*member
		var callbacks []*callback
		passed := func(m *member) {
			for _, c := range callbacks {
				delete(c.blockers, m.Reader)
			}
		}
		reclaimed := func(pending int) {
			t.Helper()
			want, blocked := 0, false
			for i, c := range callbacks {
				blocked = blocked || len(c.blockers) > 0
				if blocked {
					want++
				}
				if ran := map[bool]int{false: 1, true: 0}[blocked]; c.ran != ran {
					t.Fatalf("callback %d ran %d times, want %d; %d readers hold it up", i, c.ran, ran, len(c.blockers))
				}
			}
			if pending >= 0 && pending != want {
				t.Fatalf("%d pending, want %d", pending, want)
			}
		}
		for range 60 {
			var m *member
			if len(members) > 0 {
				m = members[r.IntN(len(members))]
			}
			switch op := r.IntN(8); {
			case op == 0 || m == nil:
				members = append(members, &member{Reader: d.Register()})
			case op == 1:
				m.Online()
				m.online = true
				passed(m)
			case op == 2:
				m.Offline()
				m.online = false
				passed(m)
			case op == 3 && r.IntN(3) == 0:
				m.Close()
				passed(m)
				for i := range members {
					if members[i] == m {
						members = append(members[:i], members[i+1:]...)
						break
					}
				}
			case op <= 5 && m.online:
				m.Quiesce()
				passed(m)
			case op == 6:
				c := &callback{blockers: map[*Reader]bool{}}
				for _, m := range members {
					if m.online {
						c.blockers[m.Reader] = true
					}
				}
				callbacks = append(callbacks, c)
				d.Retire(func() { c.ran++ })
				reclaimed(-1)
			default:
				reclaimed(d.Reclaim())
			}
		}
		for _, m := range members {
			m.Close()
			passed(m)
		}
		reclaimed(d.Reclaim())
	}
}

// TestDomainReuse: real readers on goroutines, an object that is taken away, and marked dead by its callback:
// no reader may find it dead between two quiescent points. With -race the detector checks the ordering too,
// since the mark is a plain field.
func TestDomainReuse(t *testing.T) {
	type object struct{ dead bool }
	var d Domain
	var current atomic.Pointer[object]
	current.Store(&object{})
	var stop atomic.Bool
	var readers sync.WaitGroup
	for i := range 3 {
		reader := d.Register()
		readers.Go(func() {
			defer reader.Close()
			reader.Online()
			for n := 0; !stop.Load(); n++ {
				if o := current.Load(); o.dead {
					t.Error("a reader found a released object")
					return
				}
				if n%(50+i) == 0 {
					reader.Offline()
					reader.Online()
				} else {
					reader.Quiesce()
				}
			}
		})
	}
	var writers sync.WaitGroup
	var ran atomic.Int64
	rounds := scaled(40_000)
	for range 2 {
		writers.Go(func() {
			for range rounds {
				old := current.Swap(&object{})
				d.Retire(func() { old.dead = true; ran.Add(1) })
			}
		})
	}
	writers.Wait()
	if err := d.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if n := int(ran.Load()); n != 2*rounds {
		t.Errorf("%d callbacks ran, want %d", n, 2*rounds)
	}
	stop.Store(true)
	readers.Wait()
	if n := d.Reclaim(); n != 0 || len(d.readers) != 0 {
		t.Errorf("%d callbacks and %d readers are left", n, len(d.readers))
	}
}

// TestRetireNested: a callback may retire and reclaim; what it retires runs after it.
func TestRetireNested(t *testing.T) {
	var d Domain
	var order []string
	d.Retire(func() {
		d.Retire(func() { order = append(order, "inner") })
		if n := d.Reclaim(); n != 2 {
			t.Errorf("%d pending within the first of two callbacks", n)
		}
		order = append(order, "outer")
	})
	if got := strings.Join(order, " "); got != "outer inner" {
		t.Errorf("ran %q", got)
	}
}

// TestWait: it returns when the readers have moved on, and not before; a stuck reader is named in the error.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d Domain
		reader := d.Register()
		d.Register()
		reader.Online()
		ran := false
		d.Retire(func() { ran = true })

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := d.Wait(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 callbacks pending, 1 of 2 readers online") || ran {
			t.Fatalf("under a stuck reader: %v, ran: %v", err, ran)
		}

		var finished atomic.Bool
		go func() {
			if err := d.Wait(t.Context()); err != nil || !ran {
				t.Errorf("Wait: %v, ran: %v", err, ran)
			}
			finished.Store(true)
		}()
		time.Sleep(time.Second)
		if finished.Load() {
			t.Fatal("Wait returned under an online reader")
		}
		reader.Quiesce()
		time.Sleep(2 * waitPoll)
		if !finished.Load() {
			t.Fatal("Wait goes on after the quiescent point")
		}
	})
}
