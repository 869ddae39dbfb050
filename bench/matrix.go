package bench

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// matrixGiveUp is the number of failures after which a matrix ends: each costs a second, and a lab that
// forwards nothing would cost minutes.
const matrixGiveUp = 20

// MatrixResult is who reached whom in a lab.
type MatrixResult struct {
	Probes   []Probe
	Failures []string // in words, one per probe that failed, and why the matrix is incomplete
	names    []string
}

// Matrix probes every pair of pods, every pod and node in both directions, and "internet" from every pod, in
// both families with every protocol. A probe fails too when the source that the target saw isn't one of the
// asker's own addresses, since nothing between pods and nodes may be translated, or with "internet" one of the
// asker's node, since nobody out there knows a way to pods.
func Matrix(ctx context.Context, l *Lab) (*MatrixResult, error) {
	m := &MatrixResult{names: l.matrixNames()}
	for _, from := range m.names {
		for _, to := range m.columns() {
			if from == to || l.isNode(from) && (l.isNode(to) || to == labInternet) {
				continue
			}
			probes, err := l.Probe(ctx, ProbeRequest{From: from, To: to, Protos: probeProtos, Families: []int{4, 6}})
			if err != nil {
				return nil, fmt.Errorf("probe %s from %s: %w", to, from, err)
			}
			for i := range probes {
				l.judge(&probes[i])
			}
			m.add(probes)
			if len(m.Failures) >= matrixGiveUp {
				m.Failures = append(m.Failures, "gave up: so many failures are no accident")
				return m, nil
			}
		}
	}
	return m, nil
}

// columns are who is asked.
func (m *MatrixResult) columns() []string { return append(slices.Clone(m.names), labInternet) }

func (l *Lab) matrixNames() (names []string) {
	for _, n := range l.Nodes {
		names = append(names, n.Name)
		for _, p := range l.Pods {
			if p.Node == n.Name {
				names = append(names, p.Name)
			}
		}
	}
	return names
}

func (l *Lab) isNode(name string) bool {
	return slices.ContainsFunc(l.Nodes, func(n LabNode) bool { return n.Name == name })
}

// judge fails a probe whose source is foreign.
func (l *Lab) judge(p *Probe) {
	asker := p.From
	if p.To == labInternet {
		asker = l.nodeOf(p.From)
	}
	own, err := l.addressesOf(asker, false)
	if l.isNode(p.From) && err == nil {
		gateways, _ := l.addressesOf(p.From, true) // which a node has
		own = append(own, gateways...)
	}
	if p.OK && !slices.Contains(own, p.Source) {
		p.OK = false
		p.Error = fmt.Sprintf("%s saw it come from %s, which is none of the addresses of %s %v", p.To, p.Source, asker, own)
	}
}

// nodeOf returns the pod's node.
func (l *Lab) nodeOf(pod string) string {
	for _, p := range l.Pods {
		if p.Name == pod {
			return p.Node
		}
	}
	return pod
}

func (m *MatrixResult) add(probes []Probe) {
	m.Probes = append(m.Probes, probes...)
	for _, p := range probes {
		if !p.OK {
			m.Failures = append(m.Failures, fmt.Sprintf("%s to %s (%s) by %s: %s", p.From, p.To, p.Address, p.Proto, p.Error))
		}
	}
}

// Write draws a table per family for people: rows ask columns. A cell is the round-trip time of an ICMP echo
// in milliseconds, or names the protocols that failed.
func (m *MatrixResult) Write(w io.Writer) error {
	for _, family := range []int{4, 6} {
		if _, err := fmt.Fprintf(w, "IPv%d, milliseconds\n", family); err != nil {
			return err
		}
		t := tabwriter.NewWriter(w, 7, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(t, "\t%s\t\n", strings.Join(m.columns(), "\t"))
		for _, from := range m.names {
			cells := []string{from}
			for _, to := range m.columns() {
				cells = append(cells, m.cell(from, to, family))
			}
			fmt.Fprintf(t, "%s\t\n", strings.Join(cells, "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func (m *MatrixResult) cell(from, to string, family int) string {
	rtt, failed := "-", []string(nil)
	for _, p := range m.Probes {
		switch {
		case p.From != from || p.To != to || p.Family != family:
		case !p.OK:
			failed = append(failed, p.Proto)
		case p.Proto == "icmp":
			rtt = fmt.Sprintf("%.2f", p.RTT)
		}
	}
	if failed != nil {
		return "FAILED " + strings.Join(failed, ",")
	}
	return rtt
}
