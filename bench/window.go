package bench

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counter is a number that two workers share through a file; one of them writes it.
type counter struct{ page []byte }

// makeCounter makes the file in a folder, with the number 0.
func makeCounter(dir string) (path string, err error) {
	f, err := os.CreateTemp(dir, "counter-")
	if err != nil {
		return "", err
	}
	defer f.Close()
	return f.Name(), f.Truncate(8)
}

// openCounter maps the file that makeCounter has made. The caller must close the counter.
func openCounter(path string) (*counter, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &counter{page}, nil
}

func (c *counter) word() *uint64  { return (*uint64)(unsafe.Pointer(&c.page[0])) }
func (c *counter) store(n uint64) { atomic.StoreUint64(c.word(), n) }
func (c *counter) load() uint64   { return atomic.LoadUint64(c.word()) }
func (c *counter) close() error   { return unix.Munmap(c.page) }

// window keeps a generator from having more frames on their way than a subject's queues hold.
type window struct {
	size    uint64
	arrived *counter
	lost    uint64        // given up
	last    uint64        // arrived, when that was last seen to change
	since   time.Duration // when that was
}

// windowPatience is the silence after which what is on its way is given up for lost. It is far above the
// scheduler's slices (some milliseconds), so that only a loss takes it.
const windowPatience = 50 * time.Millisecond

// open tells whether there is room for a batch. sent is how many frames were sent up to now, the time elapsed.
func (w *window) open(sent uint64, elapsed time.Duration) bool {
	arrived := w.arrived.load()
	if arrived != w.last {
		w.last, w.since = arrived, elapsed
	}
	if onTheirWay := int64(sent - arrived - w.lost); onTheirWay+batchSize <= int64(w.size) {
		return true
	}
	if elapsed-w.since < windowPatience {
		return false
	}
	w.lost, w.since = sent-arrived, elapsed
	return true
}
