package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// schema is the version of the records' form. A record of another one is not understood.
const schema = 1

var bucket = []byte("attachments")

// record is the value of one key of the bucket, as JSON.
type record struct {
	Schema int `json:"schema"`
	Attachment
}

// store keeps the records. A put or delete is on the disk when it returns.
type store struct{ db *bbolt.DB }

func openStore(path string, wait time.Duration) (*store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the state folder: %w", err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: wait})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another agent holds it; stop that one, or give this one its own 'stateDir': %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s (if it is damaged, move it away; pods then need to be created anew): %w", path, err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("set up %s: %w", path, err), db.Close())
	}
	return &store{db}, nil
}

func (s *store) put(a Attachment) error {
	value, err := json.Marshal(record{schema, a})
	if err != nil {
		return fmt.Errorf("encode the record: %w", err)
	}
	return s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(a.Key()), value) })
}

func (s *store) delete(key string) error {
	err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete([]byte(key)) })
	if err != nil {
		return fmt.Errorf("delete the record: %w", err)
	}
	return nil
}

// load returns the records, oldest first, and what is wrong with those that it can't read.
func (s *store) load() (records []Attachment, unreadable []error, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(key, value []byte) error {
			var r record
			err := json.Unmarshal(value, &r)
			if err == nil && (r.Schema != schema || r.Key() != string(key)) {
				err = fmt.Errorf("schema %d (this agent has %d) and key %q", r.Schema, schema, r.Key())
			}
			if err != nil {
				unreadable = append(unreadable, fmt.Errorf("record %q: %w", key, err))
			} else {
				if r.PortType == "" { // written before there were two
					r.PortType = TAP
				}
				records = append(records, r.Attachment)
			}
			return nil
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read the records: %w", err)
	}
	slices.SortStableFunc(records, func(x, y Attachment) int { return x.Created.Compare(y.Created) })
	return records, unreadable, nil
}

func (s *store) close() error { return s.db.Close() }
