package bench

import (
	"fmt"
	"slices"
)

// A plot's measures, in units of which a full-width plot has 900. Text is 12 units high and, in the monospaced font,
// charWidth wide.
const (
	wideChart   = 900
	narrowChart = 460
	barPitch    = 26
	barHeight   = 14
	axisHeight  = 22
	charWidth   = 7.4
	chartMargin = 8
)

// barChart is horizontal bars, one below the other.
type barChart struct {
	Title, Label, Caption string // above the plot, for those who don't see it, below it
	Width, Height         px
	Top, Bottom, TickY    px
	LabelX, TextX         px // where names end, and where figures in words begin
	One                   px // place of the ratio 1; 0 is none
	Ticks                 []tick
	Bars                  []bar
}

// bar is a figure from the chart's base to the median, with its quartiles and runs.
type bar struct {
	Name, Class, Text            string
	X, Y, W, H, Mid, TextY       px
	Median                       px
	Whisker                      string
	Dots                         []px
	Floor, FloorTop, FloorBottom px // Floor 0 is none
	Verdict                      *verdictText
}

// newBarChart lays out n bars between the longest name and the longest text.
func newBarChart(width px, n int, names, texts []string) (c *barChart, from, to px) {
	c = &barChart{Width: width, Top: 2}
	c.LabelX = px(charWidth*float64(longestText(names))) + chartMargin
	c.TextX = width - px(charWidth*float64(longestText(texts)))
	c.Bottom = c.Top + px(n*barPitch)
	c.TickY = c.Bottom + 14
	c.Height = c.Bottom + axisHeight
	return c, c.LabelX + chartMargin, c.TextX - 2*chartMargin
}

func longestText(texts []string) (n int) {
	for _, t := range texts {
		n = max(n, len([]rune(t)))
	}
	return n
}

// add draws a row as the next bar, from base to its median.
func (c *barChart) add(row *Row, name, class, text string, s *scale, base px) {
	b := bar{Name: name, Class: class, Text: text, H: barHeight, Median: s.at(row.Value)}
	b.Y = c.Top + px(len(c.Bars)*barPitch) + (barPitch-barHeight)/2
	b.Mid = b.Y + barHeight/2
	b.TextY = b.Mid + 4
	b.X, b.W = min(base, b.Median), max(base, b.Median)-min(base, b.Median)
	b.Whisker = fmt.Sprintf("M%v %vV%vM%[1]v %[4]vH%vM%[5]v %[2]vV%[3]v", s.at(row.Low), b.Mid-4, b.Mid+4, b.Mid, s.at(row.High))
	for _, run := range row.Runs {
		b.Dots = append(b.Dots, s.at(run))
	}
	c.Bars = append(c.Bars, b)
}

// ratioChart draws comparisons on a logarithmic scale, each bar from 1; nil if there are none.
func ratioChart(label string, rows []*Row) *barChart {
	if len(rows) == 0 {
		return nil
	}
	figures := []float64{1}
	var names, texts []string
	for _, row := range rows {
		figures = append(append(figures, row.Low, row.High), row.positiveRuns()...)
		names, texts = append(names, row.Name), append(texts, ratioText(row))
		if v := row.floorVerdict(); v != nil {
			figures = append(figures, row.Floor)
			texts[len(texts)-1] += " " + v.Text
		}
	}
	c, from, to := newBarChart(wideChart, len(rows), names, texts)
	s := logScale(from, to, figures)
	c.Label, c.One, c.Ticks = label, s.at(1), s.logTicks()
	for _, row := range rows {
		drawn := *row
		drawn.Runs = row.positiveRuns()
		v := row.floorVerdict()
		class := "f0"
		if v != nil && v.Class != "" {
			class = "f" + v.Class
		}
		c.add(&drawn, row.Name, class, ratioText(row), s, c.One)
		if v != nil {
			b := &c.Bars[len(c.Bars)-1]
			b.Verdict, b.Floor, b.FloorTop, b.FloorBottom = v, s.at(row.Floor), b.Y-4, b.Y+barHeight+4
		}
	}
	return c
}

// positiveRuns are those that a logarithmic scale can show.
func (r *Row) positiveRuns() []float64 {
	return slices.DeleteFunc(slices.Clone(r.Runs), func(v float64) bool { return v <= 0 })
}

func ratioText(r *Row) string {
	return fmt.Sprintf("%s (%s – %s)", times(r.Value), times(r.Low), times(r.High))
}

// times writes a ratio with as many digits behind the point as its neighbours of like size.
func times(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// absoluteCharts draw what several subjects did in one measure beside each other, from 0.
func absoluteCharts(rows []Row, colors map[string]int) (charts []*barChart) {
	type measure struct{ what, unit string }
	var order []measure
	groups := map[measure][]*Row{}
	for _, row := range keep(rows, func(r *Row) bool { return r.Unit != unitRatio }) {
		what, _ := row.split()
		m := measure{what, row.Unit}
		if groups[m] == nil {
			order = append(order, m)
		}
		groups[m] = append(groups[m], row)
	}
	for _, m := range order {
		charts = append(charts, absoluteChart(m.what, m.unit, groups[m], colors))
	}
	return charts
}

func absoluteChart(what, unit string, rows []*Row, colors map[string]int) *barChart {
	figures := []float64{0}
	var names, texts []string
	for _, row := range rows {
		_, subject := row.split()
		names, texts = append(names, subject), append(texts, short(row.Value))
		figures = append(append(figures, row.High), row.Runs...)
	}
	c, from, to := newBarChart(narrowChart, len(rows), names, texts)
	s := linearScale(from, to, figures)
	c.Title, c.Caption, c.Label, c.Ticks = what, unit, what+", "+unit, s.linearTicks(4)
	for i, row := range rows {
		c.add(row, names[i], fmt.Sprintf("f%d", colors[names[i]]), texts[i], s, s.at(0))
	}
	return c
}
