package neigh

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// someAddr returns one of 40 addresses of both families.
func someAddr(rng *rand.Rand) netip.Addr {
	i := byte(1 + rng.IntN(20))
	if rng.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, 244, 1, i})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 15: i})
}

func find(list []Entry, vni uint32, a netip.Addr) int {
	return slices.IndexFunc(list, func(e Entry) bool { return e.VNI == vni && e.Addr == a })
}

// The slow model is a slice and a loop.
func TestAgainstModel(t *testing.T) {
	rng := seed.Rand(t)
	rounds := 20_000
	if testing.Short() {
		rounds = 1_000
	}
	table, model := New(), []Entry(nil)
	for i := range rounds {
		vni, a := uint32(rng.IntN(3)), someAddr(rng)
		n := Neighbor{MAC: wire.MAC{2, 5: byte(rng.IntN(3))}, Port: port.ID(rng.IntN(3))}
		at := find(model, vni, a)
		switch rng.IntN(50) {
		case 0:
			before := len(model)
			model = slices.DeleteFunc(model, func(e Entry) bool { return e.Port == n.Port })
			if got, want := table.DeletePort(n.Port), before-len(model); got != want {
				t.Fatalf("step %d: DeletePort(%d) = %d, want %d", i, n.Port, got, want)
			}
		case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10:
			if got := table.Delete(vni, a); got != (at >= 0) {
				t.Fatalf("step %d: Delete(%d, %v) = %t, want %t", i, vni, a, got, at >= 0)
			}
			if at >= 0 {
				model = slices.Delete(model, at, at+1)
			}
		default:
			want := at < 0 || model[at].Neighbor == n
			if err := table.Insert(vni, a, n); (err == nil) != want {
				t.Fatalf("step %d: Insert(%d, %v, %v) = %v, want success %t", i, vni, a, n, err, want)
			}
			if at < 0 {
				model = append(model, Entry{vni, a, n})
			}
		}
		vni, a = uint32(rng.IntN(3)), someAddr(rng)
		at = find(model, vni, a)
		if got, ok := table.Lookup(vni, a); ok != (at >= 0) || ok && got != model[at].Neighbor {
			t.Fatalf("step %d: Lookup(%d, %v) = %v, %t", i, vni, a, got, ok)
		}
		if i%100 == 0 {
			slices.SortFunc(model, func(a, b Entry) int { // IPv4 first, as their expanded text is shorter
				line := func(e Entry) string { return fmt.Sprintf("%d %v %s", e.VNI, e.Addr.Is6(), e.Addr.StringExpanded()) }
				return strings.Compare(padded(line(a)), padded(line(b)))
			})
			if got := table.Entries(); !slices.Equal(got, model) {
				t.Fatalf("step %d: Entries() = %v, want %v", i, got, model)
			}
		}
	}
}

// padded makes the last octet of a dotted quad sort as a number.
func padded(line string) string {
	head, tail, ok := strings.Cut(line, "10.244.1.")
	if !ok {
		return line
	}
	return fmt.Sprintf("%s%3s", head, tail)
}

func TestInsertConflictNamesBoth(t *testing.T) {
	table, a := New(), netip.MustParseAddr("10.244.1.5")
	first, second := Neighbor{wire.MAC{2, 5: 1}, 3}, Neighbor{wire.MAC{2, 5: 2}, 4}
	if err := table.Insert(7, a, first); err != nil {
		t.Fatal(err)
	}
	err := table.Insert(7, a, second)
	var conflict *ConflictError
	if !errors.Is(err, ErrConflict) || !errors.As(err, &conflict) || *conflict != (ConflictError{7, a, first, second}) {
		t.Fatalf("error %#v, want ErrConflict with both", err)
	}
	for _, part := range []string{"10.244.1.5", "VNI 7", first.MAC.String() + " on port 3", second.MAC.String() + " on port 4"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q doesn't say %q", err, part)
		}
	}
	if err := table.Insert(8, a, second); err != nil {
		t.Errorf("the same address in another VNI: %v", err)
	}
}

// What no station can own must not become something that the switch answers for.
func TestInsertRefuses(t *testing.T) {
	table, good := New(), wire.MAC{2, 5: 1}
	for _, c := range []struct {
		addr string
		mac  wire.MAC
	}{
		{"0.0.0.0", good}, {"::", good}, {"224.0.0.1", good}, {"ff02::1", good}, {"255.255.255.255", good},
		{"::ffff:10.244.1.5", good}, {"fe80::1%eth0", good},
		{"10.244.1.5", wire.MAC{}}, {"10.244.1.5", wire.Broadcast},
	} {
		if err := table.Insert(1, netip.MustParseAddr(c.addr), Neighbor{MAC: c.mac}); err == nil {
			t.Errorf("%s at %v was accepted", c.addr, c.mac)
		}
	}
	if err := table.Insert(1, netip.Addr{}, Neighbor{MAC: good}); err == nil {
		t.Error("the zero Addr was accepted")
	}
	if list := table.Entries(); len(list) != 0 {
		t.Errorf("entries %v", list)
	}
}

// A reader finds the addresses that stay whatever writers do to those that share their chains: 5,000 others
// in 1,024 buckets. The race detector watches.
func TestReadersAmongWriters(t *testing.T) {
	table, stays := New(), netip.MustParseAddr("fd00::1")
	owner := Neighbor{wire.MAC{2, 5: 1}, 1}
	if err := table.Insert(1, stays, owner); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var reader, writers sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n, ok := table.Lookup(1, stays); !ok || n != owner {
				t.Errorf("the address that stays: %v, %t", n, ok)
			}
		}
	})
	for w := range 2 {
		writers.Go(func() {
			id := port.ID(2 + w)
			for i := range 2_500 {
				a := netip.AddrFrom4([4]byte{10, byte(w), byte(i >> 8), byte(i)})
				if err := table.Insert(1, a, Neighbor{wire.MAC{2}, id}); err != nil {
					t.Error(err)
				}
				table.Delete(1, netip.AddrFrom4([4]byte{10, byte(w), byte(i >> 9), byte(i >> 1)}))
			}
			table.DeletePort(id)
		})
	}
	writers.Wait()
	close(stop)
	reader.Wait()
	if list := table.Entries(); len(list) != 1 {
		t.Errorf("left behind: %v", list)
	}
}

func TestLookupAllocatesNothing(t *testing.T) {
	table, a4, a6 := New(), netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00::5")
	for _, a := range []netip.Addr{a4, a6} {
		if err := table.Insert(1, a, Neighbor{wire.MAC{2}, 1}); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		table.Lookup(1, a4)
		table.Lookup(1, a6)
		table.Lookup(2, a6)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
