package bench

import (
	"context"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestRowsSelectGroups(t *testing.T) {
	for rows, want := range map[string][]string{
		"pps.crossnode.burst.vxlan":    {"pps.crossnode.burst"},
		"tcp.crossnode.vxlan":          {"tcp.crossnode"},
		"tcp.crossnode.plain":          {"tcp.crossnode.plain", "tcp.crossnode.plain.nooffload"},
		"tcp.crossnode.plain.vxlan":    {"tcp.crossnode.plain"},
		"cpu.crossnode.vxlan":          {"tcp.crossnode"},
		"tcp.same,cpu.crossnode.nooff": {"tcp.samenode", "tcp.crossnode.nooffload"},
		"nothing":                      nil,
	} {
		var got []string
		for _, g := range selectGroups(strings.Split(rows, ",")) {
			got = append(got, g.bases[0])
		}
		if !slices.Equal(got, want) {
			t.Errorf("--rows %s measures %v, want %v", rows, got, want)
		}
	}
	if n := len(selectGroups(nil)); n != len(rowGroups) {
		t.Errorf("no --rows measure %d groups, want all %d", n, len(rowGroups))
	}
}

// A floor is judged by the lower quartile of nine pairs, and is lower without offloads.
func TestJudge(t *testing.T) {
	rows := []Row{
		{Name: "tcp.crossnode.vxlan", Low: 0.8, Pairs: 9},
		{Name: "tcp.crossnode.vxlan", Low: 0.79, Pairs: 9},
		{Name: "tcp.crossnode.vxlan", Low: 0.9, Pairs: 8},
		{Name: "tcp.crossnode.nooffload.vxlan", Low: 0.65, Pairs: 9}, // of 0.64
		{Name: "tcp.crossnode.nooffload.vxlan", Low: 0.63, Pairs: 9},
		{Name: "tcp.crossnode.rate.vxlan", Low: 1, Pairs: 9},
	}
	judge(rows)
	for i, want := range []string{"holds", "MISSED", "reached in 8 pairs of 9", "holds", "MISSED", ""} {
		got := rows[i].verdict()
		if !strings.HasSuffix(got, want) || (got == "") != (want == "") {
			t.Errorf("%s, low %v in %d pairs: %q, want %q", rows[i].Name, rows[i].Low, rows[i].Pairs, got, want)
		}
	}
}

// named is a subject that can do nothing but be told apart.
type named struct {
	subject
	called string
}

func (n named) name() string { return n.called }

// A run that doesn't count takes its neighbours along only if it is the switch's, and who never counts is left out.
func TestRunsThatDontCountAreLeftOut(t *testing.T) {
	s := &session{cfg: Config{Repeat: 3, Progress: io.Discard}, subjects: []subject{named{called: "tapyard"}, named{called: "good"}, named{called: "never"}, named{called: "once"}}}
	tried := map[string]int{}
	rows, err := s.interleave(t.Context(), "x", []metric{{unit: "Hz", long: "rate"}}, func(_ context.Context, sub subject) (values, error) {
		n := tried[sub.name()]
		tried[sub.name()]++
		if sub.name() == "never" || n == 1 && (sub.name() == "tapyard" || sub.name() == "once") {
			return values{1e9}, &imbalance{"lost"}
		}
		return values{float64(10 * (n + 1))}, nil
	})
	must(t, err)
	got := map[string][]float64{}
	for _, r := range rows {
		got[r.Name] = r.Runs
	}
	// Rounds: 1 counts; 2 is void, for the switch's is; 3, which is the others' second, 4 and 5 do.
	want := map[string][]float64{"x.good": {1, 1.5, 4.0 / 3, 1.25}, "x.once": {1, 4.0 / 3, 1.25},
		"x.rate.tapyard": {10, 30, 40, 50}, "x.rate.good": {10, 20, 30, 40}, "x.rate.once": {10, 30, 40}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if want := map[string]int{"tapyard": 5, "good": 4, "never": voidMost, "once": 4}; !reflect.DeepEqual(tried, want) {
		t.Errorf("tried %v, want %v", tried, want)
	}
	if len(s.notes) != 1 || !strings.Contains(s.notes[0], "never") || !strings.Contains(s.notes[0], "lost") {
		t.Errorf("notes %q don't say who is left out and why", s.notes)
	}
}
