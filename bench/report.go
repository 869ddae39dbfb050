package bench

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// Report is what a benchmark found.
type Report struct {
	Host   string            `json:"host"`   // processor, cores, kernel, Go version
	Commit string            `json:"commit"` // of this binary, "unknown" if built outside of a repository
	Rows   []Row             `json:"rows"`
	Absent map[string]string `json:"absent,omitempty"` // peers that were not measured, and why
	Notes  []string          `json:"notes,omitempty"`  // what else a reader of the figures has to know
	Series []Series          `json:"series,omitempty"` // what is drawn as lines

	Command string `json:"command,omitempty"` // that was run
	Ended   string `json:"ended,omitempty"`   // RFC 3339
}

// Series is a line of a plot.
type Series struct {
	Name    string       `json:"name"` // of the plot, dotted like a row's: latency.samenode.load50
	Subject string       `json:"subject"`
	X       string       `json:"x"` // what its axes show
	Y       string       `json:"y"`
	Points  [][2]float64 `json:"points"` // by ascending x
}

// percentileAxis is the X of a distribution.
const percentileAxis = "percentile"

// Row is one figure: the median of the runs, between its quartiles. In a row that compares with a peer it
// is the median of the ratios of each pair of neighbouring runs, and above 1 means that the switch is better.
type Row struct {
	Name  string  `json:"name"` // dotted, from the general to the special: pps.samenode.burst.raw
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
	Peer  string  `json:"peer,omitempty"`
	Ratio float64 `json:"ratio,omitempty"`
	Pairs int     `json:"pairs,omitempty"` // of runs that the ratio is of
	Floor float64 `json:"floor,omitempty"` // what Low has to reach; 0: nothing
	Holds *bool   `json:"holds,omitempty"` // that it does, with enough pairs; nil without a floor

	Runs          []float64 `json:"runs,omitempty"`                           // the figures that Value is the median of
	CPUPerMillion float64   `json:"cpu_seconds_per_million_frames,omitempty"` // what Value says in another way, where it does
	CPUPerGB      float64   `json:"cpu_seconds_per_gb,omitempty"`             // of frames on the wire

	group string // rows of different ones are set apart in the table for people
}

// unitRatio is the unit of rows that compare.
const unitRatio = "ratio"

// metric is one figure of a run.
type metric struct {
	name    string // "" is the benchmark's headline, whose comparison is named by the peer alone
	long    string // its name in the rows of absolute figures
	unit    string
	smaller bool    // is better
	base    string  // of its rows where that isn't the benchmark's
	frame   float64 // its bytes on the wire, on the average, where the metric counts frames; 0 is unknown
}

// values are a run's figures, one per metric; NaN is one that could not be measured.
type values []float64

// rowsOf makes a benchmark's rows: for each peer the comparisons, then everybody's own figures. runs are
// by subject, the switch first; runs with one index are neighbours, and nil where one of them was void.
func rowsOf(base string, metrics []metric, names []string, runs [][]values) []Row {
	var rows []Row
	for p := 1; p < len(names); p++ {
		for m, metric := range metrics {
			name := strings.Join(nonEmpty(cmp.Or(metric.base, base), metric.name, names[p]), ".")
			ratios := ratios(metric, m, runs[0], runs[p])
			if q, ok := quartiles(ratios); ok {
				rows = append(rows, Row{Name: name, Unit: unitRatio, Peer: names[p], Value: q[1], Ratio: q[1], Low: q[0], High: q[2], Pairs: len(onlyFinite(ratios)), Runs: onlyFinite(ratios)})
			}
		}
	}
	for s, subject := range names {
		for m, metric := range metrics {
			own := onlyFinite(column(m, runs[s]))
			if q, ok := quartiles(own); ok {
				row := Row{Name: base + "." + metric.long + "." + subject, Unit: metric.unit, Value: q[1], Low: q[0], High: q[2], Runs: own}
				row.addCosts(metric.frame)
				rows = append(rows, row)
			}
		}
	}
	return rows
}

// The beginnings of the units that say what CPU time buys, and the end of one that says what it costs.
const (
	unitPerCPU = "frames per CPU second"
	unitCPU    = "CPU seconds"
	unitPerGB  = " per GB"
)

// addCosts says in CPU seconds what the row says in frames, of so many bytes if that is not 0, or in bytes.
func (r *Row) addCosts(frame float64) {
	switch {
	case r.Value <= 0:
	case strings.HasPrefix(r.Unit, unitPerCPU):
		r.CPUPerMillion = 1e6 / r.Value
		if frame > 0 {
			r.CPUPerGB = 1e9 / frame / r.Value
		}
	case strings.HasPrefix(r.Unit, unitCPU) && strings.Contains(r.Unit, unitPerGB):
		r.CPUPerGB = r.Value
	}
}

// ofFrames are the metrics of frames of those sizes in turn.
func ofFrames(metrics []metric, sizes []int) []metric {
	if len(sizes) == 0 {
		sizes = []int{minFrame}
	}
	metrics = slices.Clone(metrics)
	for i := range metrics {
		metrics[i].frame = meanFrame(sizes)
	}
	return metrics
}

func meanFrame(sizes []int) float64 {
	sum := 0
	for _, n := range sizes {
		sum += n
	}
	return float64(sum) / float64(len(sizes))
}

func nonEmpty(parts ...string) []string {
	return slices.DeleteFunc(parts, func(s string) bool { return s == "" })
}

// ratios are those of the pairs in which both runs counted.
func ratios(metric metric, m int, ours, theirs []values) []float64 {
	var r []float64
	for i := range ours {
		if ours[i] == nil || theirs[i] == nil {
			continue
		}
		a, b := ours[i][m], theirs[i][m]
		if metric.smaller {
			a, b = b, a
		}
		r = append(r, a/b)
	}
	return r
}

func column(m int, runs []values) []float64 {
	var c []float64
	for _, run := range runs {
		if run != nil {
			c = append(c, run[m])
		}
	}
	return c
}

// quartiles returns the lower quartile, the median and the upper quartile, interpolated between
// neighbours, of the finite ones; ok is false if there are none.
func quartiles(xs []float64) (q [3]float64, ok bool) {
	xs = onlyFinite(xs)
	if len(xs) == 0 {
		return q, false
	}
	slices.Sort(xs)
	for i := range q {
		at := float64(i+1) / 4 * float64(len(xs)-1)
		low := int(at)
		high := min(low+1, len(xs)-1)
		q[i] = xs[low] + (at-float64(low))*(xs[high]-xs[low])
	}
	return q, true
}

func onlyFinite(xs []float64) []float64 {
	return slices.DeleteFunc(slices.Clone(xs), func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) })
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	fmt.Fprintln(w, r.Host)
	fmt.Fprintln(w, "commit", r.Commit)
	for _, note := range r.Notes {
		fmt.Fprintln(w, note)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	costs := slices.ContainsFunc(r.Rows, func(row Row) bool { return row.CPUPerMillion > 0 || row.CPUPerGB > 0 })
	fmt.Fprint(t, "\nNAME\tMEDIAN\tQUARTILES\t")
	if costs {
		fmt.Fprint(t, "CPU S/M FRAMES\tCPU S/GB\t")
	}
	fmt.Fprintln(t, "UNIT")
	for i, row := range r.Rows {
		if i > 0 && row.group != r.Rows[i-1].group {
			fmt.Fprintln(t, "\t\t\t")
		}
		unit := row.Unit
		if unit == unitRatio {
			unit = "times as good as " + row.Peer
		}
		unit += row.verdict()
		fmt.Fprintf(t, "%s\t%s\t%s – %s\t", row.Name, short(row.Value), short(row.Low), short(row.High))
		if costs {
			fmt.Fprintf(t, "%s\t%s\t", unlessZero(row.CPUPerMillion), unlessZero(row.CPUPerGB))
		}
		fmt.Fprintln(t, unit)
	}
	for _, peer := range slices.Sorted(maps.Keys(r.Absent)) {
		fmt.Fprintf(t, "%s\tabsent: %s\n", peer, r.Absent[peer])
	}
	return t.Flush()
}

// short writes a figure with three or four digits.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.0f k", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// hostLine says what the figures were measured on.
func hostLine() string {
	var uts unix.Utsname
	kernel := "unknown"
	if err := unix.Uname(&uts); err == nil {
		kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return fmt.Sprintf("%s, %d cores, Linux %s, %s", cpuModel(), runtime.NumCPU(), kernel, runtime.Version())
}

func cpuModel() string {
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH // arm64 names no model
}

const unknownCommit = "unknown"

// commit is what the go command stamped into the binary.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unknownCommit
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if revision == "" {
		return unknownCommit
	}
	return revision + dirty
}
