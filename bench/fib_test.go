package bench

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gaissmai/bart"

	"tapyard/bench/seed"
	"tapyard/fib"
)

// testPrefixes is a small table with default routes, and one host route of each family.
func testPrefixes() []netip.Prefix {
	prefixes := generatePrefixes(3000, 1000)
	for _, p := range []string{"0.0.0.0/0", "::/0", "10.0.0.0/8", "192.0.2.7/32", "2001:db8::7/128"} {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes
}

// testBench is the benchmark on few keys.
func testBench(t *testing.T, prefixes []netip.Prefix) *fibBench {
	t.Helper()
	ownTempDir(t)
	b, err := newFIBBench(FIBConfig{Repeat: 1, Progress: t.Output()}, prefixes)
	if err != nil {
		t.Fatal(err)
	}
	b.sizes, b.keys, b.phase = []int{10}, 1<<12, 5*time.Millisecond
	return b
}

// A run compares the sums of all contenders for all keys, so that one that ends without an error has shown
// that tapyard, bart and DPDK agree. Its report has every row of the issue.
func TestFIBContendersAgree(t *testing.T) {
	report, err := testBench(t, testPrefixes()).run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Absent) > 0 {
		t.Fatalf("absent: %v (make test-deps installs it)", report.Absent)
	}
	rows := map[string]Row{}
	for _, r := range report.Rows {
		if _, twice := rows[r.Name]; twice {
			t.Errorf("row %s is there twice", r.Name)
		}
		if rows[r.Name] = r; !(r.Value > 0) || r.Low > r.Value || r.High < r.Value {
			t.Errorf("row %+v", r)
		}
	}
	for _, name := range []string{
		"ipv4.random.single", "ipv4.random.batch", "ipv6.random.single", "ipv6.random.batch",
		"ipv4.dependent", "ipv6.dependent", "ipv4.small",
		"ipv4.single.rte_lpm", "ipv4.batch.rte_fib", "ipv6.batch.rte_fib6", "load", "updates.reader",
	} {
		if r := rows[name]; r.Ratio != r.Value || r.Ratio == 0 || r.Unit != unitRatio || r.Peer == "" {
			t.Errorf("row %s compares nothing: %+v", name, r)
		}
	}
	for _, name := range []string{
		"memory.readers", "memory.total", "updates", "updates.idle", "updates.short.p99",
		"ipv4.random.batch32.unique.all.rte_fib", "ipv6.skewed.single.unique.10.bart-fast",
		"ipv6.dependent.single.hash.all.rte_fib6",
	} {
		if r, ok := rows[name]; !ok || r.Ratio != 0 {
			t.Errorf("row %s is missing, or compares: %+v", name, r)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
		t.Errorf("the run left %v", left)
	}
}

// Without DPDK its rows are left out, and the report says how to get it.
func TestFIBWithoutDPDK(t *testing.T) {
	b := testBench(t, testPrefixes())
	t.Setenv("PATH", t.TempDir())
	report, err := b.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := "its program is compiled here and there is no cc in PATH " +
		"(Debian: apt-get install libdpdk-dev pkg-config gcc libc6-dev)"
	if report.Absent["DPDK"] != want {
		t.Errorf("absent: %v, want %s", report.Absent, want)
	}
	for _, r := range report.Rows {
		if strings.Contains(r.Name, "rte_") {
			t.Errorf("row %+v without DPDK", r)
		}
	}
}

func TestFIBIsInterrupted(t *testing.T) {
	b := testBench(t, testPrefixes())
	ctx, cancel := context.WithCancel(t.Context())
	b.cfg.Progress = writerFunc(func(line []byte) {
		if bytes.HasPrefix(line, []byte("ipv4.random")) {
			cancel()
		}
	})
	if _, err := b.run(ctx); err == nil || err.Error() != "interrupted" {
		t.Errorf("an interrupted run ended with %v", err)
	}
	<-b.dpdk.done // or the test would hang
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// A contender that is wrong about one key of many must end the run, with that key in the error.
func TestFIBWrongContenderIsNoticed(t *testing.T) {
	prefixes := family4.of(testPrefixes())
	r := seed.Rand(t)
	k := newKeySet(family4, randomAddrs(r, family4, prefixes, 1<<12))
	tables, err := buildTables(family4, hopAssignments[0].routes(prefixes))
	if err != nil {
		t.Fatal(err)
	}
	always := func(string) int { return 1 }
	ignore := func(string, float64) {}
	for _, x := range []struct{ matches, dependent bool }{{false, false}, {true, false}, {false, true}} {
		c := &cell{base: "ipv4.random.%s.hash.all", addrs: k.addrs, contenders: tables.contenders(k, x.dependent)}
		if err := c.run(t.Context(), always, ignore); err != nil {
			t.Fatalf("nobody is wrong: %v", err)
		}
		at := r.IntN(len(k.addrs))
		wrong := func(i, j int) uint64 {
			sum := uint64(j - i)
			if !x.matches {
				sum = sumBartTable(tables.table, k.addrs[i:j])
			}
			if i <= at && at < j {
				sum--
			}
			return sum
		}
		c.contenders = append(c.contenders, contender{mode: "single", who: "wrong", matches: x.matches, pass: timed(wrong)})
		err := c.run(t.Context(), always, ignore)
		hop, _ := tables.table.Lookup(k.addrs[at])
		right := "tapyard"
		if x.matches {
			right, hop = "key-set", 1
		}
		want := fmt.Sprintf("ipv4.random.single.hash.all.%s and ipv4.random.single.hash.all.wrong disagree on %v: "+
			"next hop %d and %d; one of them is wrong, so that no figure counts", right, k.addrs[at], hop, hop-1)
		if err == nil || err.Error() != want {
			t.Errorf("key %d is wrong:\n%v, want\n%s", at, err, want)
		}
	}
}

// Dependent lookups and bursts are of the same keys as independent ones, or their figures would not compare.
func TestFIBLoopsAskTheSame(t *testing.T) {
	for _, f := range []ipFamily{family4, family6} {
		prefixes := f.of(testPrefixes())
		k := newKeySet(f, randomAddrs(seed.Rand(t), f, prefixes, 1<<10))
		tables, err := buildTables(f, hopAssignments[1].routes(prefixes))
		if err != nil {
			t.Fatal(err)
		}
		want := sumBartTable(tables.table, k.addrs)
		for _, x := range slices.Concat(tables.contenders(k, false), tables.contenders(k, true)) {
			sum, took, err := x.pass(0, len(k.addrs))
			if x.matches {
				sum += want - uint64(len(k.addrs))
			}
			if sum != want || took <= 0 || err != nil {
				t.Errorf("%s %s %s: sum %d in %v (%v), want %d", f, x.mode, x.who, sum, took, err, want)
			}
		}
	}
}

func TestRandomKeysAreUniform(t *testing.T) {
	r := seed.Rand(t)
	prefixes := mustParsePrefixes("10.0.0.0/9", "10.1.0.0/16", "10.128.0.0/10", "192.0.2.0/24", "192.0.2.128/25",
		"198.51.100.1/32")
	c := coverage(prefixes)
	if want := uint64(1<<23 + 1<<22 + 256 + 1); c.total() != want || len(c) != 4 {
		t.Errorf("%v cover %d addresses, want %d in 4 spans", prefixes, c.total(), want)
	}
	const n = 1 << 14
	inFirst := 0
	for _, a := range randomAddrs(r, family4, prefixes, n) {
		if !covers(prefixes, a) {
			t.Fatalf("nothing covers %v", a)
		}
		if prefixes[0].Contains(a) {
			inFirst++
		}
	}
	// Of the addresses 2/3; the standard deviation is 60.
	if inFirst < n*2/3-360 || inFirst > n*2/3+360 {
		t.Errorf("%d of %d keys in %v, which has 2/3 of the addresses", inFirst, n, prefixes[0])
	}
}

// A prefix of two addresses is asked for as often as one of 2^96.
func TestIPv6KeysLieInPrefixesDrawnUniformly(t *testing.T) {
	prefixes := mustParsePrefixes("2001:db8::/32", "2001:db9::/64", "2001:dba::4/127", "2001:dbb::1/128")
	const n = 1 << 14
	seen := map[netip.Prefix]map[netip.Addr]int{}
	for _, a := range randomAddrs(seed.Rand(t), family6, prefixes, n) {
		i := slices.IndexFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
		if i < 0 {
			t.Fatalf("nothing covers %v", a)
		}
		if seen[prefixes[i]] == nil {
			seen[prefixes[i]] = map[netip.Addr]int{}
		}
		seen[prefixes[i]][a]++
	}
	for i, distinct := range []int{n / 5, n / 5, 2, 1} { // at least; hosts are drawn anew each time
		p, total := prefixes[i], 0
		for count := range maps.Values(seen[p]) {
			total += count
		}
		if total < n/4-330 || total > n/4+330 { // six standard deviations
			t.Errorf("%d of %d keys in %v, want a quarter", total, n, p)
		}
		if len(seen[p]) < distinct || i >= 2 && len(seen[p]) > distinct {
			t.Errorf("%d distinct keys in %v, want %d", len(seen[p]), p, distinct)
		}
	}
}

func TestSkewedKeysFavourFew(t *testing.T) {
	const n = 1 << 16
	prefixes := family4.of(testPrefixes())
	count := map[netip.Addr]int{}
	for _, a := range skewedAddrs(seed.Rand(t), family4, prefixes, n) {
		if !covers(prefixes, a) {
			t.Fatalf("nothing covers %v", a)
		}
		count[a]++
	}
	most := slices.Sorted(maps.Values(count))
	slices.Reverse(most)
	// Zipf's probabilities: the sum of k^-1.1 to 65,536 is 7.29, so that the first has 13.7 % and the second 6.4 %.
	for i, share := range []float64{0.137, 0.064} {
		if got := float64(most[i]) / n; got < share*0.9 || got > share*1.1 {
			t.Errorf("destination %d has %.3f of the keys, want %.3f", i, got, share)
		}
	}
	if len(count) < 5000 {
		t.Errorf("only %d destinations in %d keys", len(count), n)
	}
}

func TestHopAssignments(t *testing.T) {
	prefixes := testPrefixes()
	for _, c := range []struct {
		name          string
		distinct, max int
	}{{"hash", 256, 256}, {"unique", len(prefixes), len(prefixes)}} {
		i := slices.IndexFunc(hopAssignments, func(a hopAssignment) bool { return a.name == c.name })
		hops := map[fib.NextHop]bool{}
		for _, r := range hopAssignments[i].routes(prefixes) {
			if hops[r.NextHop] = true; r.NextHop == fib.None || int(r.NextHop) > c.max {
				t.Errorf("%s: %v has next hop %d", c.name, r.Prefix, r.NextHop)
			}
		}
		if len(hops) != c.distinct {
			t.Errorf("%s: %d next hops for %d routes, want %d", c.name, len(hops), len(prefixes), c.distinct)
		}
	}
}

func TestReadPrefixes(t *testing.T) {
	text := "2001:db8::/32\n10.0.0.0/8\n0.0.0.0/0\n"
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte(text))
	z.Close()
	want := mustParsePrefixes("0.0.0.0/0", "10.0.0.0/8", "2001:db8::/32")
	for _, file := range []string{text, packed.String()} {
		if got, err := readPrefixes(writeTemp(t, file)); err != nil || !slices.Equal(got, want) {
			t.Errorf("read %v (%v), want %v", got, err, want)
		}
	}
	for _, c := range []struct{ file, want string }{
		{"10.0.0.0/8\nten/8\n", `line 2: "ten/8" is not a prefix like 192.0.2.0/24 or 2001:db8::/32`},
		{"10.0.0.0/8\n\n", `line 2: "" is not a prefix like 192.0.2.0/24 or 2001:db8::/32`},
		{"10.0.0.1/8\n", `line 1: "10.0.0.1/8" has bits set beyond its length: write 10.0.0.0/8`},
		{"::ffff:10.0.0.0/104\n", `line 1: "::ffff:10.0.0.0/104" is IPv4-mapped: write it as IPv4`},
		{"::/0\n10.0.0.0/8\n::/0\n", `::/0 is listed twice: each prefix is one route (sort -u)`},
		{"", "there is no prefix in it; one is needed a line"},
		{packed.String()[:packed.Len()-6], "after line 3: unexpected EOF"},
	} {
		name := writeTemp(t, c.file)
		if _, err := readPrefixes(name); err == nil || err.Error() != "routes "+name+": "+c.want {
			t.Errorf("%q: %v, want %s", c.file, err, c.want)
		}
	}
	none := filepath.Join(t.TempDir(), "none")
	if _, err := readPrefixes(none); err == nil || err.Error() != "read routes: open "+none+": no such file or directory" {
		t.Errorf("no file: %v", err)
	}
}

// Where the real table is absent the report says that the other one isn't real; a file that was named must exist.
func TestGeneratedTableIsNamed(t *testing.T) {
	t.Chdir(t.TempDir())
	prefixes, note, err := loadPrefixes("")
	if err != nil || !strings.Contains(note, "generated") {
		t.Errorf("note %q (%v), want that the table is generated", note, err)
	}
	if n4, n6 := len(family4.of(prefixes)), len(family6.of(prefixes)); n4 != generated4 || n6 != generated6 {
		t.Errorf("%d and %d prefixes", n4, n6)
	}
	if !slices.IsSortedFunc(prefixes, netip.Prefix.Compare) || checkPrefixes(prefixes) != nil {
		t.Error("the generated table is not sorted, or has a prefix twice")
	}
	if _, _, err := loadPrefixes("bgp.txt"); err == nil {
		t.Error("a file that isn't there was replaced by a generated table")
	}
}

// A gate takes the assignment of next hops with the worse ratio, and of several peers the faster one, round by round.
func TestGatesTakeTheWorse(t *testing.T) {
	rows := gates(map[string][]float64{
		"ipv4.random.batch32.hash.all.tapyard":          {1, 2, 4},
		"ipv4.random.batch32.hash.all.rte_fib":          {4, 8, 16},
		"ipv4.random.batch32.hash.all.rte_fib-avx512":   {3, 6, 12},
		"ipv4.random.batch32.unique.all.tapyard":        {1, 2, 4},
		"ipv4.random.batch32.unique.all.rte_fib":        {2, 4, 8},
		"ipv4.random.batch32.unique.all.rte_fib-avx512": {5, 10, 20},
	})
	want := []Row{
		{Name: "ipv4.batch.rte_fib", Unit: unitRatio, Peer: "rte_fib", Value: 2, Ratio: 2, Low: 2, High: 2},
		{Name: "ipv4.batch.rte_fib.hash", Unit: unitRatio, Peer: "rte_fib with AVX-512", Value: 3, Ratio: 3, Low: 3, High: 3},
		{Name: "ipv4.batch.rte_fib.unique", Unit: unitRatio, Peer: "rte_fib", Value: 2, Ratio: 2, Low: 2, High: 2},
	}
	if !reflect.DeepEqual(rows, want) {
		t.Errorf("rows\n%+v, want\n%+v", rows, want)
	}
}

// Default routes that the table lacks are inserted first, so that all is as before in the end.
func TestShortChanges(t *testing.T) {
	routes := hopAssignments[1].routes(mustParsePrefixes("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/9", "2002::/16"))
	var table bart.Table[uint32]
	for _, r := range routes {
		table.Insert(r.Prefix, uint32(r.NextHop))
	}
	before, changes := table.Clone(), shortChanges(routes)
	for _, c := range changes {
		if c.Prefix.Bits() > 8 {
			t.Errorf("%v is not short", c.Prefix)
		}
		if _, found := table.Get(c.Prefix); found != c.Delete {
			t.Errorf("%+v, and the table has it: %v", c, found)
		}
		if c.Delete {
			table.Delete(c.Prefix)
		} else {
			table.Insert(c.Prefix, uint32(c.NextHop))
		}
	}
	if len(changes) != 6 || !table.Equal(before) {
		t.Errorf("%d changes, want 6 that leave the table as it was", len(changes))
	}
}

func covers(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func mustParsePrefixes(texts ...string) (prefixes []netip.Prefix) {
	for _, s := range texts {
		prefixes = append(prefixes, netip.MustParsePrefix(s))
	}
	return prefixes
}

func writeTemp(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "routes")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
