package podapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func tombstones(t *testing.T, a *agent) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(TombstoneDir(a.socket))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestTombstones(t *testing.T) {
	a := serve(t, answerOK)
	a.stop()
	dir := TombstoneDir(a.socket)
	ns := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(ns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	present, gone, stubborn := request("DEL"), request("DEL"), request("DEL")
	present.ContainerID, present.Netns = "present", ns
	gone.ContainerID, gone.Netns = "gone", ns+"2"
	stubborn.ContainerID = "stubborn"
	for _, r := range []Request{present, gone, stubborn, stubborn} {
		if err := WriteTombstone(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	add := request("ADD")
	add.ContainerID = "added"
	if err := errors.Join(WriteTombstone(dir, add), os.WriteFile(filepath.Join(dir, "garbage.json"), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	writing, killed := filepath.Join(dir, "new-1"), filepath.Join(dir, "new-2") // by a plugin that was killed three minutes ago
	past := time.Now().Add(-3 * time.Minute)
	if err := errors.Join(os.WriteFile(writing, []byte("{"), 0o600), os.WriteFile(killed, []byte("{"), 0o600), os.Chtimes(killed, past, past)); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[string]bool{} // by container: with a namespace
	record := func(_ context.Context, r *Request, netns int) (json.RawMessage, error) {
		mu.Lock()
		defer mu.Unlock()
		got[r.Command+" "+r.ContainerID] = netns >= 0
		if r.ContainerID == "stubborn" {
			return nil, errors.New("not yet")
		}
		return nil, nil
	}
	a.serveAgain(t, record)
	// The first answer comes after all tombstones.
	if _, err := Call(context.Background(), a.socket, request("ADD"), -1); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if want := "map[ADD c1:false DEL gone:false DEL present:true DEL stubborn:false]"; fmt.Sprint(got) != want {
		t.Errorf("handled %v, want %s", got, want)
	}
	mu.Unlock()
	if left := tombstones(t, a); len(left) != 2 || !slices.Contains(left, "new-1") {
		t.Errorf("tombstones left: %v, want the stubborn one's, and what is being written", left)
	}
	if err := os.Remove(writing); err != nil {
		t.Fatal(err)
	}
	// An ADD makes a pod that an old tombstone must not delete; a failed GC says which DELs are still open.
	if err := WriteTombstone(dir, add); err != nil {
		t.Fatal(err)
	}
	if _, err := Call(context.Background(), a.socket, add, -1); err != nil {
		t.Fatal(err)
	}
	if left := tombstones(t, a); len(left) != 1 {
		t.Errorf("tombstones left after ADD: %v, want the stubborn one's", left)
	}
	if err := WriteTombstone(dir, present); err != nil {
		t.Fatal(err)
	}
	resp, err := Call(context.Background(), a.socket, Request{Command: "GC"}, -1)
	if err != nil || resp.Error == nil || !strings.Contains(resp.Error.Msg, "not yet") || len(tombstones(t, a)) != 1 {
		t.Errorf("GC: %+v, %v; tombstones left %v", resp, err, tombstones(t, a))
	}
	// A DEL over the socket that fails keeps its tombstone, one that succeeds takes it away.
	for _, r := range []Request{stubborn, present} {
		if err := WriteTombstone(dir, r); err != nil {
			t.Fatal(err)
		}
		if _, err := Call(context.Background(), a.socket, r, -1); err != nil {
			t.Fatal(err)
		}
	}
	if left := tombstones(t, a); len(left) != 1 {
		t.Errorf("tombstones left: %v, want the stubborn one's", left)
	}
}
