package port

import (
	"errors"
	"fmt"

	"tapyard/switch/frame"
	"tapyard/switch/uring"
)

// Rings are what the workers of a switch read and write the frames of its TAPs with, many by one system call. A nil
// one has none. It must outlive the workers.
type Rings struct{ byWorker []*uring.Ring }

// OpenRings makes a ring for each worker but the slow one, which sends frames one by one. Its error says what would
// help.
func OpenRings(workers int) (*Rings, error) {
	r := &Rings{}
	for n := range workers {
		ring, err := uring.New(frame.BurstSize)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("ring of worker %d: %w", n, err), r.Close())
		}
		r.byWorker = append(r.byWorker, ring)
	}
	return r, nil
}

// of returns a worker's ring, or nil if it has none.
func (r *Rings) of(worker int) *uring.Ring {
	if r == nil || worker >= len(r.byWorker) {
		return nil
	}
	return r.byWorker[worker]
}

// UsePools has a worker's requests go faster whose frames are of the pools, which stay in physical memory then: 5 MiB for a
// worker's. It is called once for a worker, before it runs. An error is no reason to stop: all works without.
func (r *Rings) UsePools(worker int, pools ...*frame.Pool) error {
	ring := r.of(worker)
	if ring == nil {
		return nil
	}
	var memory [][]byte
	for _, p := range pools {
		memory = append(memory, p.Memory())
	}
	return ring.RegisterMemory(memory...)
}

// Close gives the rings back; no worker may use them any more.
func (r *Rings) Close() error {
	var errs []error
	for _, ring := range r.byWorker {
		errs = append(errs, ring.Close())
	}
	return errors.Join(errs...)
}
