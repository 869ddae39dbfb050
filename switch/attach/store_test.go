package attach

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// Changes that wait for another one's transaction go to the disk in the next one, all of them but one that can't be made,
// and each is there when its call returns.
func TestChangesTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), database)
	if err := createStore(path, []Attachment{{ContainerID: "spoilt", IfName: "eth0"}, {ContainerID: "old", IfName: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	s, err := openStore(path, lockWait)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	transactions := func() (id int) {
		s.db.View(func(tx *bbolt.Tx) error { id = tx.ID(); return nil })
		return id
	}
	together := func(n int, change func(i int) error) (errs []error) {
		errs = make([]error, n)
		var running sync.WaitGroup
		s.writing.Lock()
		for i := range n {
			running.Go(func() {
				errs[i] = change(i)
				if has, err := s.has(fmt.Sprintf("c%d/eth0", i)); errs[i] == nil && (!has || err != nil) {
					t.Errorf("change %d has returned, and isn't made: %v", i, err)
				}
			})
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			s.mu.Lock()
			waiting := len(s.waiting)
			s.mu.Unlock()
			if waiting == n {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d changes wait, want %d", waiting, n)
			}
		}
		s.writing.Unlock()
		running.Wait()
		return errs
	}
	put := func(i int) error { return s.put(Attachment{ContainerID: fmt.Sprint("c", i), IfName: "eth0"}) }
	before := transactions()
	if errs := together(32, put); slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		t.Errorf("32 puts: %v", errs)
	}
	if n := transactions() - before; n != 1 {
		t.Errorf("32 puts took %d transactions, want 1", n)
	}
	// A record that doesn't match its checksum is not replaced.
	if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte("spoilt/eth0"), []byte("123456789")) }); err != nil {
		t.Fatal(err)
	}
	errs := together(3, func(i int) error {
		return []func() error{
			func() error { return put(0) }, func() error { return put(1) }, func() error { return s.put(Attachment{ContainerID: "spoilt", IfName: "eth0"}) },
		}[i]()
	})
	if errs[0] != nil || errs[1] != nil || errs[2] == nil {
		t.Errorf("the third of three can't be made: %v", errs)
	}
	if err := s.delete("old/eth0"); err != nil {
		t.Error(err)
	}
	if has, err := s.has("old/eth0"); has || err != nil {
		t.Errorf("a deleted record: %t, %v", has, err)
	}
}
