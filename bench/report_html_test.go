package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

func pageReport() *Report {
	missed, holds := false, true
	return &Report{
		Host: "a <machine>", Commit: "abc", Command: "tapyard bench compare", Notes: []string{"a & b"},
		Absent: map[string]string{"vde2": "not installed"},
		Rows: []Row{
			{Name: "tcp.samenode.raw", Unit: unitRatio, Peer: "raw", Value: 0.9, Ratio: 0.9, Low: 0.8, High: 1, Pairs: 9, Floor: 0.95, Holds: &missed, Runs: []float64{0.8, 0.9, 1}},
			{Name: "pps.samenode.burst.ovs", Unit: unitRatio, Peer: "ovs", Value: 40, Ratio: 40, Low: 38, High: 44, Pairs: 9, Floor: 4, Holds: &holds, Runs: []float64{0, 40}},
			{Name: "udp.samenode.64.raw", Unit: unitRatio, Peer: "raw", Value: 1, Ratio: 1, Low: 1, High: 1},
			{Name: "void.raw", Unit: unitRatio, Peer: "raw"},
			{Name: "tcp.samenode.throughput.tapyard", Unit: "Gb/s", Value: 11.5, Low: 11, High: 12, Runs: []float64{11, 11.5, 12}},
			{Name: "tcp.samenode.throughput.raw", Unit: "Gb/s", Value: 0, Low: 0, High: 0},
			{Name: "pps.samenode.burst.frames.tapyard", Unit: "frames per CPU second of the switch", Value: 1e6, Low: 1e6, High: 1e6, CPUPerMillion: 1, CPUPerGB: 15.625},
			{Name: "workers.reordered", Unit: "of 10 M numbered frames", Holds: &holds},
			{Name: "undotted", Unit: "s", Value: 1},
		},
		Series: []Series{
			{Name: "latency.samenode", Subject: "tapyard", X: percentileAxis, Y: "round trip, µs", Points: [][2]float64{{0, 20}, {50, 30}, {99.9, 4000}}},
			{Name: "udp.samenode.64", Subject: "raw", X: "offered, frames/s", Y: "lost, %", Points: [][2]float64{{1e5, 0}, {2e5, 30}}},
			{Name: "udp.samenode.64", Subject: "ovs", X: "offered, frames/s", Y: "lost, %", Points: [][2]float64{{1e5, 0}}},
			{Name: "udp.samenode.empty", Subject: "raw"},
		},
	}
}

// A parser of HTML must find every row, nothing that is loaded from elsewhere, and only places inside the plots.
func TestPage(t *testing.T) {
	r := pageReport()
	var buf bytes.Buffer
	if err := r.WriteHTML(&buf); err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(bytes.NewReader(buf.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	plots := 0
	for n := range doc.Descendants() {
		switch {
		case n.Type == html.TextNode && n.Parent.Data != "style":
			text.WriteString(n.Data)
		case n.Type == html.ElementNode:
			if n.Data == "svg" {
				plots++
			}
			for _, a := range n.Attr {
				if a.Key == "src" || a.Key == "href" || strings.Contains(a.Val, "://") {
					t.Errorf("<%s %s=%q> loads something", n.Data, a.Key, a.Val)
				}
			}
		}
	}
	for _, want := range []string{"a <machine>", "a & b", "vde2: not installed", "✗ floor 0.95", "✓ floor 4", "✓ holds", "15.6", "latency.samenode", "udp.samenode.64"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, row := range r.Rows {
		if !strings.Contains(text.String(), row.Name) {
			t.Errorf("the page lacks the row %s", row.Name)
		}
	}
	// floors, other ratios, 4 measures, 2 line charts, and 3 samples in their legends
	if want := 2 + 4 + 2 + 3; plots != want {
		t.Errorf("%d plots, want %d", plots, want)
	}
	checkPlots(t, buf.String())
}

var svgPattern = regexp.MustCompile(`(?s)<svg.*?</svg>`)

// checkPlots finds figures that are no numbers or outside of their plot, and text that is cut off at its edges.
func checkPlots(t *testing.T, page string) {
	for _, svg := range svgPattern.FindAllString(page, -1) {
		d := xml.NewDecoder(strings.NewReader(svg))
		var width, height, x float64
		anchor := ""
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("a plot is not XML: %v\n%s", err, svg)
			}
			switch token := token.(type) {
			case xml.StartElement:
				anchor = ""
				for _, a := range token.Attr {
					v, err := strconv.ParseFloat(a.Value, 64)
					switch a.Name.Local {
					case "viewBox":
						box := strings.Fields(a.Value)
						width, _ = strconv.ParseFloat(box[2], 64)
						height, _ = strconv.ParseFloat(box[3], 64)
					case "x", "x1", "x2", "cx", "width":
						x = v
						if err != nil || v < 0 || v > width {
							t.Errorf("%s=%q in a plot %g wide", a.Name.Local, a.Value, width)
						}
					case "y", "y1", "y2", "cy", "height":
						if err != nil || v < 0 || v > height {
							t.Errorf("%s=%q in a plot %g high", a.Name.Local, a.Value, height)
						}
					case "d":
						if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
							t.Errorf("path %q", a.Value)
						}
					case "text-anchor":
						anchor = a.Value
					}
				}
			case xml.CharData:
				// 6 units a character is what the small font takes.
				room := map[string]float64{"": width - x, "middle": 2 * min(x, width-x), "end": x}[anchor]
				if label := strings.TrimSpace(string(token)); 6*float64(len([]rune(label))) > room {
					t.Errorf("%q at %g does not fit a plot %g wide", label, x, width)
				}
			}
		}
	}
}

// A page for a report without anything to draw is a page.
func TestEmptyPage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.html")
	if err := (&Report{Host: "a machine"}).writeHTMLFile(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), "a machine") || !strings.HasSuffix(string(text), "</html>\n") {
		t.Errorf("page of %d bytes, %v", len(text), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".report-*")); left != nil {
		t.Errorf("left %v", left)
	}
	if err := (&Report{}).writeHTMLFile(filepath.Join(path, "below-a-file")); err == nil {
		t.Error("a page was written below a file")
	}
}

// A scale's ends are its figures' places, and its ticks lie between them in order.
func TestScales(t *testing.T) {
	for name, s := range map[string]*scale{
		"log":              logScale(100, 500, []float64{0.5, 14}),
		"log, one figure":  logScale(100, 500, []float64{1}),
		"log, far":         logScale(100, 500, []float64{1e-3, 1e9}),
		"linear":           linearScale(100, 500, []float64{3, 877_000}),
		"linear, of zeros": linearScale(100, 500, []float64{0, 0}),
	} {
		if from, to := s.at(s.min), s.at(s.max); math.Abs(float64(from-100)) > 1e-6 || math.Abs(float64(to-500)) > 1e-6 {
			t.Errorf("%s: ends at %v and %v, want 100 and 500", name, from, to)
		}
		ticks := s.linearTicks(5)
		if s.warp != nil {
			ticks = s.logTicks()
		}
		if len(ticks) < 2 || len(ticks) > 14 {
			t.Errorf("%s: %d ticks", name, len(ticks))
		}
		at := px(99)
		for _, tick := range ticks {
			if tick.At <= at || tick.At > 500 {
				t.Errorf("%s: tick %q at %v after %v", name, tick.Label, tick.At, at)
			}
			at = tick.At
		}
	}
}

// What CPU time buys is said as what it costs.
func TestCosts(t *testing.T) {
	runs := [][]values{{{2e6}, {2e6}}}
	metrics := []metric{{long: "frames", unit: "frames per CPU second of the switch"}}
	row := rowsOf("pps", ofFrames(metrics, []int{64, 1436}), []string{"tapyard"}, runs)[0]
	if row.CPUPerMillion != 0.5 || math.Abs(row.CPUPerGB-1e9/750/2e6) > 1e-12 || len(row.Runs) != 2 {
		t.Errorf("%+v, want 0.5 s for a million and 0.667 s for 1/750 of 10^9 frames", row)
	}
	row = rowsOf("tcp", tcpMetrics[1:2], []string{"tapyard"}, [][]values{{{0.4}}})[0]
	if row.CPUPerGB != 0.4 || row.CPUPerMillion != 0 {
		t.Errorf("%+v, want 0.4 s for a gigabyte", row)
	}
}
