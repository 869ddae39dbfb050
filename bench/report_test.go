package bench

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
)

// The expected figures are those of R's quantile(x, type = 7).
func TestQuartiles(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want [3]float64
	}{
		{[]float64{7}, [3]float64{7, 7, 7}},
		{[]float64{4, 1, 3, 2}, [3]float64{1.75, 2.5, 3.25}},
		{[]float64{9, 1, 5, 3, 7}, [3]float64{3, 5, 7}},
		{[]float64{2, math.NaN(), 4, math.Inf(1)}, [3]float64{2.5, 3, 3.5}},
	} {
		if got, ok := quartiles(c.in); !ok || got != c.want {
			t.Errorf("quartiles of %v: %v, want %v", c.in, got, c.want)
		}
	}
	if _, ok := quartiles([]float64{math.NaN()}); ok {
		t.Error("quartiles of nothing")
	}
}

// The ratio of neighbours survives a machine that gets slower from round to round; that of medians doesn't.
func TestRowsCompareNeighbours(t *testing.T) {
	metrics := []metric{
		{name: "", long: "rate", unit: "frames/s"},
		{name: "cpu", long: "seconds", unit: "s", smaller: true},
		{name: "machine", long: "machine", unit: "s"},
	}
	unknown := math.NaN()
	ours := []values{{200, 1, unknown}, {20, 2, unknown}, {2, 3, unknown}}
	theirs := []values{{100, 2, unknown}, {10, 4, unknown}, {1, 6, unknown}}
	rows := rowsOf("pps.x", metrics, []string{"tapyard", "raw"}, [][]values{ours, theirs})
	var names []string
	for _, r := range rows {
		names = append(names, r.Name)
		if r.Unit == unitRatio && (r.Value != 2 || r.Ratio != 2 || r.Low != 2 || r.High != 2 || r.Peer != "raw") {
			t.Errorf("%+v, want a ratio of 2 throughout", r)
		}
	}
	want := []string{"pps.x.raw", "pps.x.cpu.raw", "pps.x.rate.tapyard", "pps.x.seconds.tapyard", "pps.x.rate.raw", "pps.x.seconds.raw"}
	if !slices.Equal(names, want) {
		t.Errorf("rows %v, want %v: those that couldn't be measured are left out", names, want)
	}
	if rows[2].Value != 20 || rows[2].Low != 11 || rows[2].High != 110 {
		t.Errorf("absolute row %+v, want 20 between 11 and 110", rows[2])
	}
}

func TestReportShape(t *testing.T) {
	r := Report{Host: "a machine", Commit: "abc", Rows: []Row{{Name: "tcp.samenode.raw", Value: 1.5, Unit: unitRatio, Low: 1.4, High: 1.6, Peer: "raw", Ratio: 1.5}}, Absent: map[string]string{"vde": "not installed"}}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"host":"a machine","commit":"abc","rows":[{"name":"tcp.samenode.raw","value":1.5,"unit":"ratio","low":1.4,"high":1.6,"peer":"raw","ratio":1.5}],"absent":{"vde":"not installed"}}`; string(text) != want {
		t.Errorf("JSON\n%s, want\n%s", text, want)
	}
	var table strings.Builder
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a machine", "tcp.samenode.raw", "1.5", "1.4 – 1.6", "times as good as raw", "absent: not installed"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
}

// Rows of different groups are set apart, in columns that run on; notes come before them.
func TestTableGroups(t *testing.T) {
	r := Report{Notes: []string{"on generated routes"}, Rows: []Row{{Name: "a", group: "1"}, {Name: "b", group: "1"}, {Name: "longer", group: "2"}}}
	var table strings.Builder
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(table.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	want := []string{"", "commit", "on generated routes", "", "NAME    MEDIAN  QUARTILES  UNIT", "a       0       0 – 0", "b       0       0 – 0", "", "longer  0       0 – 0", ""}
	if !slices.Equal(lines, want) {
		t.Errorf("lines\n%q, want\n%q", lines, want)
	}
}
