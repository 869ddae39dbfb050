package attach

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"tapyard/cniplugin/podapi"
)

// DamagedError says that a database can't be relied on, and what to do.
type DamagedError struct {
	Path  string
	Cause error
}

// Error names the file, what is wrong with it and the way out.
func (e *DamagedError) Error() string {
	return fmt.Sprintf("the records of attached pods, %s, are damaged: %v; write them anew from the pods' devices: tapyard ipam audit --rebuild --state-dir %s",
		e.Path, e.Cause, filepath.Dir(e.Path))
}

// Unwrap returns the cause.
func (e *DamagedError) Unwrap() error { return e.Cause }

// store keeps the records. A put or delete is on the disk when it returns. Those that come while another one is on its way
// to the disk go there together: a transaction waits for the disk twice, however many records it writes.
type store struct {
	db        *bbolt.DB
	file      *os.File   // bbolt's
	writing   sync.Mutex // held for a transaction
	allocated int64      // bytes of the file for which the disk has room; under writing

	mu      sync.Mutex
	waiting []*change // for the next transaction; under mu
}

// change is a put, or a delete.
type change struct {
	key, value []byte // of a put
	check      uint64 // of value
	done       bool   // under writing, as the rest
	err        error
}

// lockWait is how long openStore waits for the database, which a killed predecessor holds until it is reaped.
const lockWait = 2 * time.Second

// openStore opens the database, which must be there. Its error is a *DamagedError unless another agent holds it.
func openStore(path string, wait time.Duration) (*store, error) {
	s := &store{}
	err := s.open(path, wait)
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another agent holds it; stop that one, or give this one its own 'stateDir': %w", path, err)
	}
	if err != nil {
		return nil, &DamagedError{path, err}
	}
	return s, nil
}

func (s *store) open(path string, wait time.Duration) (err error) {
	// Free pages that the file doesn't list can't be listed wrongly.
	options := &bbolt.Options{Timeout: wait, NoFreelistSync: true,
		OpenFile: func(path string, _ int, _ os.FileMode) (*os.File, error) {
			s.file, err = openChecked(path, wait)
			return s.file, err
		}}
	if s.db, err = bbolt.Open(path, 0o600, options); err != nil {
		return err
	}
	info, err := s.file.Stat()
	if err != nil {
		return errors.Join(err, s.db.Close())
	}
	s.allocated = info.Size()
	return nil
}

// openChecked returns a database file, locked as bbolt does it, which then finds its lock held by itself.
func openChecked(path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err = lockFile(f, wait); err == nil {
		var b []byte
		if b, err = io.ReadAll(f); err == nil {
			err = checkPages(b)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func lockFile(f *os.File, wait time.Duration) error {
	const retry = 10 * time.Millisecond
	for until := time.Now().Add(wait); ; time.Sleep(retry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(until) {
			return berrors.ErrTimeout
		}
	}
}

// createStore makes a database with these records at path, whole or not at all: an error wraps fs.ErrExist
// if there is one already.
func createStore(path string, records []Attachment) error {
	tmp := fmt.Sprintf("%s.new-%d", path, os.Getpid())
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer os.Remove(tmp)
	if err := writeStore(tmp, records); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	// Unlike a renaming, this leaves alone what another agent made meanwhile.
	if err := os.Link(tmp, path); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func writeStore(path string, records []Attachment) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket(bucket)
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	s, err := openStore(path, lockWait)
	if err != nil {
		return err
	}
	for _, a := range records {
		if err = s.put(a); err != nil {
			break
		}
	}
	return errors.Join(err, s.close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (s *store) put(a Attachment) error {
	value, check, err := encodeRecord(a)
	if err != nil {
		return err
	}
	return s.write(&change{key: []byte(a.Key()), value: value, check: check})
}

// delete writes nothing about a key that isn't there.
func (s *store) delete(key string) error {
	known, err := s.has(key)
	if known {
		err = s.write(&change{key: []byte(key)})
	}
	if err != nil {
		return fmt.Errorf("delete the record: %w", err)
	}
	return nil
}

// write returns when the change is on the disk, to which it goes with all that wait when its turn has come.
func (s *store) write(c *change) error {
	s.mu.Lock()
	s.waiting = append(s.waiting, c)
	s.mu.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	if c.done {
		return c.err
	}
	s.mu.Lock()
	together := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	err := s.commit(together)
	for _, c := range together {
		if c.err, c.done = err, true; err != nil && len(together) > 1 {
			c.err = s.commit([]*change{c}) // it may have been another one's
		}
	}
	return c.err
}

// commit makes all changes or none.
func (s *store) commit(changes []*change) error {
	puts := 0
	for _, c := range changes {
		if c.value != nil {
			puts++
		}
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		if puts > 0 {
			if err := s.reserve(tx, puts); err != nil {
				return err
			}
		}
		for _, c := range changes {
			if err := s.set(tx, c.key, c.value, c.check); err != nil {
				return err
			}
		}
		return nil
	})
}

// has says whether there is a record.
func (s *store) has(key string) (has bool, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		has = tx.Bucket(bucket).Get([]byte(key)) != nil
		return nil
	})
	return has, err
}

// set replaces a record by another one, or by none, and brings the bucket's checksum along.
func (s *store) set(tx *bbolt.Tx, key, value []byte, check uint64) error {
	b := tx.Bucket(bucket)
	if old := b.Get(key); old != nil {
		_, was, err := decodeRecord(key, old)
		if err != nil {
			return err
		}
		check ^= was
	}
	if err := b.SetSequence(b.Sequence() ^ check); err != nil {
		return err
	}
	if value == nil {
		return b.Delete(key)
	}
	return b.Put(key, value)
}

// room is how many pages the file has on the disk beside those in use before records are added: 16 for each one
// (its leaf, its branches, and their halves when they are split: 8 at most), and 16 to which the next DEL can
// always write copies, for a page is never changed in place. Of several DELs in one transaction that find too few, each
// is then made alone. roomStep spares most ADDs the system call.
const room, roomStep = 16, 16

// reserve has the disk set blocks aside, so that a full one fails an ADD, and never a DEL. It can't on a file
// system that writes old blocks anew (btrfs), nor on one without such a call.
func (s *store) reserve(tx *bbolt.Tx, puts int) error {
	page, stats := int64(s.db.Info().PageSize), s.db.Stats()
	want := tx.Size() + (room*int64(puts+1)-int64(stats.FreePageN+stats.PendingPageN))*page
	if want <= s.allocated {
		return nil
	}
	want += roomStep * page
	err := unix.Fallocate(int(s.file.Fd()), 0, 0, want)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return errors.Join(podapi.Errorf(podapi.CodeTryAgain, "no room for the records of attached pods; free some on the file system of %s", s.db.Path()),
			fmt.Errorf("allocate %d bytes: %w", want, err))
	}
	s.allocated = want
	return nil
}

// load returns the records, oldest first, or a *DamagedError.
func (s *store) load() (records []Attachment, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucket)
		if b == nil {
			return fmt.Errorf("bucket %q is missing", bucket)
		}
		var sum uint64
		if err := b.ForEach(func(key, value []byte) error {
			a, check, err := decodeRecord(key, value)
			sum ^= check
			records = append(records, a)
			return err
		}); err != nil {
			return err
		}
		if sum != b.Sequence() {
			return fmt.Errorf("its %d records are not those that were written last: their checksums' sum is %#x instead of %#x", len(records), sum, b.Sequence())
		}
		return nil
	})
	if err != nil {
		return nil, &DamagedError{s.db.Path(), err}
	}
	slices.SortStableFunc(records, func(x, y Attachment) int { return x.Created.Compare(y.Created) })
	return records, nil
}

func (s *store) close() error { return s.db.Close() }
