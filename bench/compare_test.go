package bench

import (
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
