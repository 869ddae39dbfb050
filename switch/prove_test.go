package vswitch

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A worker that hangs in an event and a slow path that hangs in an item are named; those that sleep are woken.
func TestProveNamesWhoIsStuck(t *testing.T) {
	var hang atomic.Bool
	held, release := make(chan struct{}), make(chan struct{})
	now := func() time.Time { // which both ask for with each item, and a worker that is woken as well
		if hang.Load() {
			held <- struct{}{}
			<-release
		}
		return time.Now()
	}
	sw, err := New(Config{Workers: 1, Log: slog.New(slog.DiscardHandler), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	sw.Start()
	if err := sw.Prove(t.Context()); err != nil {
		t.Errorf("of an idle switch: %v", err)
	}
	hang.Store(true)
	prove := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		return sw.Prove(ctx)
	}
	answer := make(chan error, 1)
	go func() { answer <- prove() }()
	<-held
	if err := <-answer; err == nil || !strings.Contains(err.Error(), "worker 0 (thread ") {
		t.Errorf("error %v, want that worker 0 is stuck", err)
	}
	sw.slow.arrivals <- arrival{}
	<-held
	if err := prove(); err == nil || !strings.Contains(err.Error(), "the slow path is stuck") {
		t.Errorf("error %v, want that the slow path is stuck", err)
	}
	hang.Store(false)
	close(release)
	if err := sw.Prove(t.Context()); err != nil {
		t.Errorf("after both went on: %v", err)
	}
	if _, err := sw.Stop(); err != nil {
		t.Error(err)
	}
}
