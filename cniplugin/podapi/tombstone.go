package podapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// TombstoneDir returns the folder of tombstones that belongs to a socket.
func TombstoneDir(socket string) string { return filepath.Join(filepath.Dir(socket), "tombstones") }

// WriteTombstone leaves a DEL for the agent's next start. It is complete and durable on return, or absent.
// The caller then tries the socket once more: an agent listens first and reads the tombstones then (Serve),
// so either that try reaches it or it finds the file.
func WriteTombstone(dir string, req Request) error {
	req.Version = Version
	body, err := json.Marshal(req)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = writeDurably(dir, tombstonePath(dir, req.ContainerID, req.IfName), body)
	}
	if err != nil {
		return fmt.Errorf("leave a tombstone for %s/%s: %w", req.ContainerID, req.IfName, err)
	}
	return nil
}

// tombstonePath hashes the names, since together they may be longer than a file's name.
func tombstonePath(dir, containerID, ifName string) string {
	sum := sha256.Sum256([]byte(containerID + "/" + ifName))
	return filepath.Join(dir, hex.EncodeToString(sum[:16])+".json")
}

func writeDurably(dir, path string, body []byte) error {
	f, err := os.CreateTemp(dir, "new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeTombstone takes the tombstone of a deleted attachment away, or it would delete the next one of that
// name. An absent one is no error.
func removeTombstone(dir string, req *Request) error {
	if err := remove(tombstonePath(dir, req.ContainerID, req.IfName)); err != nil {
		return fmt.Errorf("remove the tombstone of %s/%s: %w", req.ContainerID, req.IfName, err)
	}
	return nil
}

// remove accepts that a DEL or a GC at the same time was faster.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// replayTombstones handles each tombstone as the request that it is and removes it, also when it can't be
// read. One whose DEL fails is left for the next start, or for a GC.
func (s *Server) replayTombstones(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if filepath.Ext(e.Name()) != ".json" {
			errs = append(errs, removeUnfinished(e, path))
			continue
		}
		if err := s.replay(ctx, path); err != nil {
			errs = append(errs, fmt.Errorf("tombstone %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// unfinishedAge is how long a plugin, which gives up after a minute, may take to write a tombstone.
const unfinishedAge = 2 * time.Minute

// removeUnfinished takes away what a plugin was writing when it was killed.
func removeUnfinished(e os.DirEntry, path string) error {
	info, err := e.Info()
	if err != nil || time.Since(info.ModTime()) < unfinishedAge {
		return nil // it has its name by now, or will have
	}
	return remove(path)
}

func (s *Server) replay(ctx context.Context, path string) error {
	body, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	req, err := decodeRequest(body)
	if err == nil && req.Command != "DEL" {
		err = fmt.Errorf("command %q in a tombstone", req.Command)
	}
	if err != nil {
		return errors.Join(err, remove(path))
	}
	netns, err := unix.Open(req.Netns, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		netns = -1 // as a rule the pod is gone by now
	}
	defer closeFD(netns)
	if _, err := s.Handler.Handle(ctx, req, netns); err != nil {
		return err
	}
	return remove(path)
}
