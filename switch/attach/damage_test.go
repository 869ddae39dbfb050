package attach

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
)

// damage returns a copy of the file that is shorter, or in which one bit is another.
func damage(b []byte, rng *rand.Rand) (what string, damaged []byte) {
	damaged = slices.Clone(b)
	if rng.IntN(3) == 0 {
		at := rng.IntN(len(b))
		return fmt.Sprintf("cut off at %d", at), damaged[:at]
	}
	at, bit := rng.IntN(len(b)), rng.IntN(8)
	damaged[at] ^= 1 << bit
	return fmt.Sprintf("bit %d of byte %d", bit, at), damaged
}

// used returns the file without the room behind what is in use, so that most of the damage hits.
func used(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pages := (len(bytes.TrimRight(b, "\x00")) + unix.Getpagesize() - 1) / unix.Getpagesize()
	return b[:pages*unix.Getpagesize()]
}

// A hundred damaged databases of a node with pods: either all records are right, or the start stops with path,
// cause and the command, which works. In the first case it may only be that nothing was hit that says anything.
func TestDamagedDatabase(t *testing.T) {
	rng, pods := seed.Rand(t), 24
	rounds, byType := 100, map[bool]int{}
	if testing.Short() {
		rounds, pods = 20, 6
	}
	n := newNode(t, nil)
	for i := range pods { // of both types, and with a past
		n.cfg.PortType = []string{TAP, Veth}[i%2]
		ns := nstest.New(t)
		n.add(t, ns, fmt.Sprint("c", i))
		if i%3 == 0 {
			n.del(t, reqFor(ns, fmt.Sprint("c", i)))
			n.add(t, ns, fmt.Sprint("d", i))
		}
	}
	truth := n.recorded(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.start.StateDir, database)
	whole := used(t, path)
	for range rounds {
		what, damaged := damage(whole, rng)
		os.Remove(path)
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		stopped := n.startOrRebuild(t, what)
		byType[stopped]++
		got := n.recorded(t)
		if diff := differing(truth, got, stopped); diff != "" {
			t.Fatalf("%s, stopped %t: %s", what, stopped, diff)
		}
		n.assertNoneGivenOut(t, truth)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d stopped, %d started", byType[true], byType[false])
	if byType[true] < rounds/20 { // about four in ten are: half of the pages may be free ones
		t.Errorf("only %d of %d damages were noticed: is there anything in the file?", byType[true], rounds)
	}
	clear(n.ports)
	n.reopen(t)
	if len(n.List()) != pods {
		t.Errorf("restored %v", n.listed())
	}
}

// startOrRebuild opens the database, by way of a rebuild if it has to be.
func (n *node) startOrRebuild(t *testing.T, what string) (stopped bool) {
	t.Helper()
	m, err := Open(n.start)
	if err == nil {
		n.Manager = m
		return false
	}
	path := filepath.Join(n.start.StateDir, database)
	var cause *DamagedError
	if !errors.As(err, &cause) || !strings.Contains(err.Error(), path) || cause.Cause == nil || !strings.Contains(err.Error(), "tapyard ipam audit --rebuild --state-dir "+n.start.StateDir) {
		t.Fatalf("%s: %v", what, err)
	}
	before, _ := os.ReadFile(path)
	out, err := Rebuild(n.start.StateDir)
	if err != nil {
		t.Fatalf("%s: rebuild after %v: %v", what, cause, err)
	}
	if kept, err := os.ReadFile(out.Aside); err != nil || !bytes.Equal(kept, before) {
		t.Fatalf("%s: the damaged file is not kept: %v", what, err)
	}
	os.Remove(out.Aside)
	n.open(t)
	return true
}

func (n *node) recorded(t *testing.T) map[string]Attachment {
	t.Helper()
	records, err := n.store.load()
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]Attachment{}
	for _, a := range records {
		m[a.Key()] = a
	}
	return m
}

// differing compares records; those that were rebuilt know the time of their making to the millisecond.
func differing(want, got map[string]Attachment, rebuilt bool) string {
	if !slices.Equal(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))) {
		return fmt.Sprintf("records %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for key, w := range want {
		if rebuilt {
			w.Created = w.Created.Truncate(time.Millisecond)
		}
		if !reflect.DeepEqual(w, got[key]) {
			return fmt.Sprintf("record %+v, want %+v", got[key], w)
		}
	}
	return ""
}

// assertNoneGivenOut claims the addresses that pods have, which must be refused.
func (n *node) assertNoneGivenOut(t *testing.T, pods map[string]Attachment) {
	t.Helper()
	for _, a := range pods {
		for _, addr := range a.Addrs() {
			if err := n.networks[0].pool(addr).Claim(addr, "thief"); err == nil {
				t.Fatalf("address %v of %s can be had", addr, a.Key())
			}
		}
	}
}

// Records of another schema are not understood, their addresses are in use all the same.
func TestRecordOfAnotherSchema(t *testing.T) {
	n := newNode(t, nil)
	n.add(t, nstest.New(t), "c1")
	if err := n.store.db.Update(func(tx *bbolt.Tx) error {
		value := []byte(`{"schema":99,"containerID":"b","ifName":"eth0"}`)
		check := checkOf([]byte("b/eth0"), value)
		b := tx.Bucket(bucket)
		for shift := 56; shift >= 0; shift -= 8 {
			value = append(value, byte(check>>shift))
		}
		return errors.Join(b.Put([]byte("b/eth0"), value), b.SetSequence(b.Sequence()^check))
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(n.start); err == nil || !strings.Contains(err.Error(), "b/eth0") || !strings.Contains(err.Error(), "schema 99") {
		t.Errorf("error %v", err)
	}
	if !n.startOrRebuild(t, "schema") {
		t.Error("the start did not stop")
	}
}

// A database that was deleted is not taken for that of a new node.
func TestLostDatabase(t *testing.T) { bothTypes(t, testLostDatabase) }

func testLostDatabase(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	a := n.add(t, ns, "c1")
	truth := n.recorded(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Rebuild(n.start.StateDir); err == nil || !strings.Contains(err.Error(), "not damaged") {
		t.Errorf("Rebuild of what is not damaged: %v", err)
	}
	path := filepath.Join(n.start.StateDir, database)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err := Open(n.start)
	if damaged := (*DamagedError)(nil); !errors.As(err, &damaged) || !strings.Contains(err.Error(), ns.Path()) {
		t.Fatalf("Open: %v; want a damaged database and the pod %s", err, ns.Path())
	}
	out, err := Rebuild(n.start.StateDir)
	if err != nil || out.Aside != "" || len(out.Short) > 0 {
		t.Fatalf("Rebuild: %+v, %v", out, err)
	}
	n.reopen(t)
	if diff := differing(truth, n.recorded(t), true); diff != "" {
		t.Error(diff)
	}
	n.assertConnected(t, ns, a)
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
}

// While an agent has the database, nobody writes another.
func TestRebuildBesideAnAgent(t *testing.T) {
	n := newNode(t, nil)
	n.add(t, nstest.New(t), "c1")
	if _, err := Rebuild(n.start.StateDir); err == nil || !strings.Contains(err.Error(), "another agent holds it") {
		t.Errorf("Rebuild: %v", err)
	}
}

// A pod may write into its device's alias: it can't have another's attachment or address by that, and if it spoils
// its own, the rest is written all the same.
func TestRebuildAndForgedAliases(t *testing.T) { bothTypes(t, testRebuildAndForgedAliases) }

func testRebuildAndForgedAliases(t *testing.T, portType string) {
	n, ns, other := newNode(t, ofType(portType)), nstest.New(t), nstest.New(t)
	a := n.add(t, ns, "c1")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.start.StateDir, database)
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, other, "ip tuntap add eth5 mode tap")
	forged, long := a, a
	forged.ContainerID = "forger"
	long.ContainerID = strings.Repeat("f", 200)
	for name, c := range map[string]struct{ alias, refused, lost string }{
		"the same attachment twice": {alias: n.agent.alias(a), refused: "both claim to have c1/eth0"},
		"the same address twice":    {alias: n.agent.alias(forged), refused: "both claim to have 10.244.1.3 of VNI 1"},
		"a copy that is damaged":    {alias: n.agent.alias(forged) + "A", lost: "damaged"},
		"no room for a copy":        {alias: n.agent.alias(long), lost: "no room"},
		"another agent's":           {alias: someAgent.alias(forged)},
		"another's, of that name":   {alias: someAgent.alias(a)},
		"another version's":         {alias: "tapyard:forger/eth0"},
		"not ours":                  {alias: "tapyard: mine"},
	} {
		run(t, other, "ip link set eth5 alias '"+c.alias+"'")
		out, err := Rebuild(n.start.StateDir)
		if c.refused != "" {
			if err == nil || !strings.Contains(err.Error(), c.refused) || !strings.Contains(err.Error(), "eth5 in "+other.Path()) {
				t.Errorf("%s: %v", name, err)
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != "damaged" {
				t.Errorf("%s: the database is %q, %v", name, b, err)
			}
			continue
		}
		lost := strings.Join(out.Lost, "\n")
		if err != nil || len(out.Records) != 1 || !strings.Contains(lost, c.lost) || (c.lost == "") != (lost == "") {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
		if err := os.Rename(out.Aside, path); err != nil {
			t.Fatal(err)
		}
	}
	run(t, other, "ip link del eth5")
	if _, err := Rebuild(n.start.StateDir); err != nil {
		t.Fatal(err)
	}
	n.open(t)
}

// Whatever bbolt makes of a database that lives, the check finds it good.
func TestPagesOfALivingDatabase(t *testing.T) {
	rng, path := seed.Rand(t), filepath.Join(t.TempDir(), database)
	if err := createStore(path, nil); err != nil {
		t.Fatal(err)
	}
	s, err := openStore(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.db.NoSync = true
	model, a := map[string]bool{}, typical()
	for step := range 3000 {
		a.ContainerID = fmt.Sprint(rng.IntN(50 + step/4))
		a.Name = strings.Repeat("n", rng.IntN(rng.IntN(9000)+1)) // pages that overflow as well
		if grow := step < 2000; rng.IntN(3) > 0 == grow {
			err, model[a.Key()] = s.put(a), true
		} else {
			err = s.delete(a.Key())
			delete(model, a.Key())
		}
		if err != nil {
			t.Fatal(err)
		}
		if step%50 > 0 {
			continue
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = checkPages(b)
		}
		records, lerr := s.load()
		if err != nil || lerr != nil || len(records) != len(model) {
			t.Fatalf("step %d: %v; %d records, %v; want %d", step, err, len(records), lerr, len(model))
		}
	}
}

// Every number that bbolt would be led astray by is noticed before: whatever file passes can be opened, read and
// written. Each 8 bytes of the fuzzer's are a place in a good file and what is there instead.
func FuzzPages(f *testing.F) {
	var records []Attachment
	for i := range 40 { // more than a page
		a := typical()
		a.ContainerID = fmt.Sprint("c", i)
		records = append(records, a)
	}
	var files [][]byte
	for _, n := range []int{0, 1, 40} {
		path := filepath.Join(f.TempDir(), "seed.db")
		if err := createStore(path, records[:n]); err != nil {
			f.Fatal(err)
		}
		files = append(files, used(f, path))
		f.Add(uint8(len(files)-1), []byte{})
	}
	f.Fuzz(func(t *testing.T, file uint8, changes []byte) {
		b := slices.Clone(files[int(file)%len(files)])
		for ; len(changes) >= 8; changes = changes[8:] {
			native.PutUint32(b[native.Uint32(changes)%uint32(len(b)-4):], native.Uint32(changes[4:]))
		}
		sealMetas(b)
		if checkPages(b) != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "x.db")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openStore(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		if _, err := s.load(); err != nil {
			return
		}
		if err := s.put(typical()); err != nil {
			t.Fatal(err)
		}
		if err := s.delete(typical().Key()); err != nil {
			t.Fatal(err)
		}
		if got, err := s.load(); err != nil || len(got)%40 > 1 {
			t.Fatalf("%d records, %v", len(got), err)
		}
	})
}

// sealMetas makes the first two pages' checksums right, or no fuzzer would come beyond them.
func sealMetas(b []byte) {
	for i := range 2 {
		at := i * unix.Getpagesize()
		if len(b) < at+pageHeader+metaSize {
			return
		}
		meta := b[at+pageHeader : at+pageHeader+metaSize]
		native.PutUint64(meta[metaSize-8:], metaSum(meta))
	}
}
