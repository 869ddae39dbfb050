package vswitch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// What is written to a worker's eventfd, whose value is the sum of all that it hasn't read: so of the many that may
// want a proof, none makes it a stop.
const wakeToProve, wakeToStop = 1, 1 << 32

// wake has the worker's epoll_wait return with a message.
func (w *worker) wake(message uint64) error {
	if _, err := unix.Write(w.wakeFD, binary.NativeEndian.AppendUint64(nil, message)); err != nil {
		return fmt.Errorf("wake worker %d: %w", w.id, err)
	}
	return nil
}

// woken reads what the worker was woken for.
func (w *worker) woken() {
	var sum [8]byte
	if _, err := unix.Read(w.wakeFD, sum[:]); err != nil {
		return // EINTR: the event comes again
	}
	w.stopped = binary.NativeEndian.Uint64(sum[:]) >= wakeToStop
	w.rounds.Add(1)
}

// proveEvery is how often Prove looks whether the workers have gone round. It has no hurry.
const proveEvery = time.Millisecond

// Prove returns when every worker has come round its loop once more, woken if it slept, and the slow worker has come to
// its queues: for a watchdog, which shall not take a process for a switch. After ctx the error names who is stuck. It is
// called between Start and Stop.
func (sw *Switch) Prove(ctx context.Context) error {
	before := make([]int64, len(sw.workers))
	for i, w := range sw.workers {
		before[i] = w.rounds.Load()
		if err := w.wake(wakeToProve); err != nil {
			return err
		}
	}
	var errs []error
	for i, w := range sw.workers {
		for w.rounds.Load() == before[i] && ctx.Err() == nil {
			time.Sleep(proveEvery)
		}
		if w.rounds.Load() == before[i] {
			errs = append(errs, fmt.Errorf("worker %d (thread %d) is stuck: %w", i, w.thread.Load(), ctx.Err()))
		}
	}
	done := make(chan struct{})
	select {
	case sw.slow.proofs <- done:
		<-done // closed at once
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("the slow path is stuck: %w", ctx.Err()))
	}
	return errors.Join(errs...)
}
