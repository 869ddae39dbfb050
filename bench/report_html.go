package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// The report as a page: one file with its style and its plots as inline SVG, so that it can be mailed, printed and kept.
// The plots are drawn here rather than by a library: gonum/plot and its like write fixed colours into the SVG, which
// can't follow a reader's light, dark or printed page.
//
//go:embed report_html.tmpl
var pageSource string

var page = template.Must(template.New("page").Parse(pageSource))

// pageData is what the template shows.
type pageData struct {
	Title               string
	Report              *Report
	Dashes              []string
	Floors, Ratios      *barChart // nil: there are none
	Absolute            []*barChart
	Latency, Other      []*lineChart
	Rows                []tableRow
	HasFloors, HasCosts bool
}

// tableRow is a row in words.
type tableRow struct {
	Name                                              []string // between its dots, where a line may break
	Median, Quartiles, Unit, Pairs, PerMillion, PerGB string
	Verdict                                           *verdictText
}

// verdictText says whether a floor holds.
type verdictText struct{ Class, Text string }

// WriteHTML writes the report as one self-contained page.
func (r *Report) WriteHTML(w io.Writer) error {
	colors := subjectColors(r)
	data := pageData{
		Title: "Tapyard benchmark", Report: r, Dashes: lineDashes[:],
		Floors:   ratioChart("ratio of each row that has a floor", keep(r.Rows, func(row *Row) bool { return row.compares() && row.Holds != nil })),
		Ratios:   ratioChart("ratio of each row", keep(r.Rows, func(row *Row) bool { return row.compares() && row.Holds == nil })),
		Absolute: absoluteCharts(r.Rows, colors),
	}
	for _, c := range lineCharts(r.Series, colors) {
		if c.X == percentileAxis {
			data.Latency = append(data.Latency, c)
		} else {
			data.Other = append(data.Other, c)
		}
	}
	for i := range r.Rows {
		row := &r.Rows[i]
		data.Rows = append(data.Rows, row.inWords())
		data.HasFloors = data.HasFloors || row.Holds != nil
		data.HasCosts = data.HasCosts || row.CPUPerMillion > 0 || row.CPUPerGB > 0
	}
	return page.Execute(w, data)
}

// writeHTMLFile writes the page to a file that appears whole or not at all.
func (r *Report) writeHTMLFile(path string) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".report-*")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	defer os.Remove(file.Name()) // fails when it has its name
	if err := r.WriteHTML(file); err != nil {
		file.Close()
		return fmt.Errorf("write the report to %s: %w", path, err)
	}
	if err := file.Chmod(0o644); err != nil {
		file.Close()
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

func keep(rows []Row, want func(*Row) bool) (kept []*Row) {
	for i := range rows {
		if want(&rows[i]) {
			kept = append(kept, &rows[i])
		}
	}
	return kept
}

// compares says that the row is a ratio with a peer that can be drawn on a logarithmic scale.
func (r *Row) compares() bool { return r.Unit == unitRatio && r.Low > 0 }

func (r *Row) inWords() tableRow {
	t := tableRow{Name: strings.Split(r.Name, "."), Median: short(r.Value), Quartiles: short(r.Low) + " – " + short(r.High), Unit: r.Unit,
		PerMillion: unlessZero(r.CPUPerMillion), PerGB: unlessZero(r.CPUPerGB), Verdict: r.floorVerdict()}
	if r.Unit == unitRatio {
		t.Unit = "× " + r.Peer
	}
	if r.Pairs > 0 {
		t.Pairs = fmt.Sprint(r.Pairs)
	}
	return t
}

func unlessZero(v float64) string {
	if v == 0 {
		return ""
	}
	return short(v)
}

// floorVerdict is nil for a row that has nothing to hold.
func (r *Row) floorVerdict() *verdictText {
	words := "holds"
	if r.Holds != nil && !*r.Holds {
		words = "missed"
	}
	if r.Floor > 0 {
		words = fmt.Sprintf("floor %.3g", r.Floor)
	}
	switch {
	case r.Holds == nil:
		return nil
	case *r.Holds:
		return &verdictText{"good", "✓ " + words}
	case r.Floor > 0 && r.Low >= r.Floor:
		return &verdictText{"", words + ", too few pairs"}
	}
	return &verdictText{"bad", "✗ " + words}
}

// lineDashes tell the subjects' lines apart where colours don't; there is a colour for each in the page's style.
var lineDashes = [...]string{"none", "7 3", "2 2", "9 3 2 3", "4 2", "1 2", "12 4"}

// subjectColors gives each subject a colour, the same in all plots; the switch has the first.
func subjectColors(r *Report) map[string]int {
	colors := map[string]int{ourName: 0}
	add := func(name string) {
		if _, known := colors[name]; !known {
			colors[name] = min(len(colors), len(lineDashes)-1)
		}
	}
	for _, s := range r.Series {
		add(s.Subject)
	}
	for i := range r.Rows {
		if r.Rows[i].Unit != unitRatio {
			_, subject := r.Rows[i].split()
			add(subject)
		}
	}
	return colors
}

// split parts the name of an absolute row: what was measured, and of whom.
func (r *Row) split() (what, subject string) {
	if dot := strings.LastIndexByte(r.Name, '.'); dot > 0 {
		return r.Name[:dot], r.Name[dot+1:]
	}
	return "", r.Name
}

// px is a place on a plot, in its units, to a tenth.
type px float64

func (p px) String() string { return fmt.Sprint(math.Round(float64(p)*10) / 10) }
