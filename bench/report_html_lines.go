package bench

import (
	"fmt"
	"strings"
)

const (
	lineChartHeight = 250
	lineChartLeft   = 56 // room for "1.25 M" and a gap
)

// lineChart is series of several subjects over each other.
type lineChart struct {
	Title, Label, X, Y               string
	Width, Height                    px
	Left, Right, Top, Bottom         px
	TickY, YLabelX, YTitleY, XTitleY px
	XTicks, YTicks                   []tick
	Lines                            []line
}

// line is a series in a chart.
type line struct {
	Subject string
	Color   int
	Path    string
	Marks   []mark
}

type mark struct{ X, Y px }

// lineCharts draw a plot for each name of series, in their order; series without points are left out.
func lineCharts(all []Series, colors map[string]int) (charts []*lineChart) {
	var order []string
	groups := map[string][]Series{}
	for _, s := range all {
		if len(s.Points) == 0 {
			continue
		}
		if groups[s.Name] == nil {
			order = append(order, s.Name)
		}
		groups[s.Name] = append(groups[s.Name], s)
	}
	for _, name := range order {
		charts = append(charts, newLineChart(groups[name], colors))
	}
	return charts
}

func newLineChart(series []Series, colors map[string]int) *lineChart {
	c := &lineChart{
		Title: series[0].Name, X: series[0].X, Y: series[0].Y,
		Width: narrowChart, Height: lineChartHeight,
		Left: lineChartLeft, Right: narrowChart - 24, Top: 22, Bottom: lineChartHeight - 40,
	}
	c.Label = c.Title + ": " + c.Y + " by " + c.X
	c.YTitleY, c.YLabelX, c.TickY, c.XTitleY = c.Top-8, c.Left-6, c.Bottom+15, c.Bottom+33
	x, y := c.scales(series)
	for _, s := range series {
		l := line{Subject: s.Subject, Color: colors[s.Subject]}
		var path strings.Builder
		for i, p := range s.Points {
			m := mark{x.at(p[0]), y.at(p[1])}
			l.Marks = append(l.Marks, m)
			fmt.Fprintf(&path, "%c%v %v", "ML"[min(i, 1)], m.X, m.Y)
		}
		l.Path = path.String()
		c.Lines = append(c.Lines, l)
	}
	return c
}

// scales are linear from 0; those of a distribution stretch the tail and the times.
func (c *lineChart) scales(series []Series) (x, y *scale) {
	var xs, ys []float64
	for _, s := range series {
		for _, p := range s.Points {
			xs, ys = append(xs, p[0]), append(ys, p[1])
		}
	}
	if c.X != percentileAxis {
		x, y = linearScale(c.Left, c.Right, xs), linearScale(c.Bottom, c.Top, ys)
		c.XTicks, c.YTicks = x.linearTicks(5), y.linearTicks(5)
		return x, y
	}
	_, last := extent(xs)
	x = &scale{max: max(last, 99), from: c.Left, to: c.Right, warp: nines}
	for _, p := range []float64{0, 50, 90, 99, 99.9, 99.99} {
		if p <= x.max {
			c.XTicks = append(c.XTicks, x.tick(p, fmt.Sprintf("%g", p)))
		}
	}
	y = logScale(c.Bottom, c.Top, ys)
	c.YTicks = y.logTicks()
	return x, y
}
