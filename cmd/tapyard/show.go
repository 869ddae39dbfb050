package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tapyard/bench"
	"tapyard/switch/attach"
	"tapyard/switch/observe"
)

// showOptions are the flags that all views share.
type showOptions struct {
	socket, node, output string
	watch                bool
}

// view is one `show` subcommand: what it is called, and how people read it.
type view struct {
	name, short string
	table       func(raw []byte, w io.Writer) error
	query       func() (url.Values, error) // nil: it takes none
}

var views = []view{
	{name: "ports", short: "What is attached, with its counters: rx is into the switch, tx out of it",
		table: tableOf("ID\tPORT\tKIND\tVNI\tADDRESSES\tMAC\tMTU\tWORKER\tRX FRAMES\tRX WIRE\tTX FRAMES\tTX WIRE\tDROPS\tKERNEL DROPS\tTO/FROM POD\tLAST ERROR", func(p observe.Port) []any {
			return []any{p.ID, p.Name, p.Kind, p.VNI, or(join(p.Addresses)), or(p.MAC), or(p.MTU), or(join(p.Workers)), p.Rx.Frames, p.Rx.WireFrames, p.Tx.Frames, p.Tx.WireFrames, p.Drops, p.KernelDrops, bandwidth(p.Bandwidth), or(p.LastError)}
		})},
	{name: "fdb", short: "Which MAC is behind which port",
		table: tableOf("VNI\tMAC\tPORT\tPEER\tSTATIC\tLAST SEEN\tMOVES\tHELD FOR", func(e observe.FDBEntry) []any {
			now := time.Now()
			return []any{e.VNI, e.MAC, e.Port, or(e.Peer), e.Static, age(now, e.LastSeen), or(e.Moves), held(now, e.FrozenUntil)}
		})},
	{name: "neighbors", short: "Which addresses the switch answers ARP and neighbour solicitations for",
		table: tableOf("VNI\tADDRESS\tMAC\tPORT", func(n observe.Neighbor) []any { return []any{n.VNI, n.Address, n.MAC, n.Port} })},
	{name: "routes", short: "The routing table",
		table: tableOf("VNI\tPREFIX\tKIND\tVIA\tMTU\tPORT\tPEER", func(r observe.Route) []any {
			return []any{r.VNI, r.Prefix, r.Kind, or(r.Via), or(r.MTU), or(r.Port), or(r.Peer)}
		})},
	{name: "peers", short: "The other nodes",
		table: tableOf("PEER\tUNDERLAY\tPOD SUBNETS\tROUTER MAC\tWIRE", func(p observe.Peer) []any {
			return []any{p.Name, join(p.Underlay), join(p.PodSubnets), p.MAC, or(p.Wire)}
		})},
	{name: "drops", short: "What was dropped, where and why",
		table: blocksOf("PORT\tREASON\tFRAMES\tWIRE\tLAST EXAMPLE",
			func(d observe.Drop) []any {
				return []any{d.Port, d.Reason, d.Frames, d.WireFrames, age(time.Now(), d.ExampleAt)}
			},
			func(d observe.Drop) []string { return []string{d.Explain, d.Example} })},
	{name: "offloads", short: "How TAPs are read and written, which offloads each port takes (the switch does the others in software), and a tunnel's trains",
		table: offloadTable},
	{name: "workers", short: "How the threads that move frames share the work",
		table: tableOf("WORKER\tTHREAD\tQUEUES\tTAKEN OVER\tRX FRAMES\tRX WIRE\tRX SHARE\tCPU SECONDS\tBUSY NOW", func(w observe.Worker) []any {
			return []any{w.ID, w.Thread, w.Queues, w.Taken, w.Rx.Frames, w.Rx.WireFrames, percent(w.RxShare), fmt.Sprintf("%.1f", w.CPUSeconds), percent(w.Busy)}
		})},
	{name: "config", short: "The configuration in force, defaults included", table: keyTable},
}

func showCommand() *cobra.Command {
	opts := &showOptions{}
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Look into a running agent",
		Long: `Look into a running agent: a table for people, or JSON with -o json. --watch repeats it every second.
The agent is the one of this machine, one whose admin socket --socket names, or a lab node by --node.
FRAMES counts frames as they are held in memory, WIRE the frames on the wire that they stand for.`,
		Args: cobra.NoArgs, // or a mistyped view would print the help and succeed
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := cmd.PersistentFlags()
	f.StringVar(&opts.socket, "socket", filepath.Join(defaults().RunDir, "admin.sock"), "the agent's admin socket")
	f.StringVar(&opts.node, "node", "", "a node of the lab instead, such as n1")
	f.StringVarP(&opts.output, "output", "o", "", "json, instead of a table")
	f.BoolVar(&opts.watch, "watch", false, "repeat every second until interrupted")
	cmd.MarkFlagsMutuallyExclusive("socket", "node")
	for _, v := range views {
		cmd.AddCommand(opts.command(v))
	}
	cmd.AddCommand(showFlowsCommand(opts))
	return cmd
}

func (o *showOptions) command(v view) *cobra.Command {
	return &cobra.Command{Use: v.name, Short: v.short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), v, cmd.OutOrStdout()) }}
}

func (o *showOptions) run(ctx context.Context, v view, w io.Writer) error {
	if o.output != "" && o.output != "json" {
		return fmt.Errorf("output %q: leave it out for a table, or use json", o.output)
	}
	client := observe.Client{Socket: o.socket}
	if o.node != "" {
		socket, err := bench.LabAdminSocket(o.node)
		if err != nil {
			return err
		}
		client.Socket = socket
	}
	for {
		var out bytes.Buffer
		if err := o.render(ctx, client, v, &out); err != nil {
			return err
		}
		if !o.watch {
			_, err := out.WriteTo(w)
			return err
		}
		if f, ok := w.(*os.File); ok && isTerminal(f) {
			fmt.Fprint(w, "\x1b[H\x1b[2J") // home, clear
		}
		if _, err := out.WriteTo(w); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (o *showOptions) render(ctx context.Context, c observe.Client, v view, w io.Writer) error {
	var query url.Values
	if v.query != nil {
		var err error
		if query, err = v.query(); err != nil {
			return err
		}
	}
	raw, err := c.Query(ctx, v.name, query)
	if err != nil {
		return err
	}
	if o.output != "json" {
		return v.table(raw, w)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, raw, "", "  "); err != nil {
		return fmt.Errorf("answer of %s: %w", c.Socket, err)
	}
	_, err = indented.WriteTo(w)
	return err
}

// tableOf returns a renderer with one row per element of the answer.
func tableOf[T any](header string, row func(T) []any) func([]byte, io.Writer) error {
	return blocksOf(header, row, func(T) []string { return nil })
}

// blocksOf returns a renderer with one row per element of the answer and, indented below it, the lines that
// are not empty: sentences, which would make a table wider than a terminal.
func blocksOf[T any](header string, row func(T) []any, lines func(T) []string) func([]byte, io.Writer) error {
	return func(raw []byte, w io.Writer) error {
		var elements []T
		if err := json.Unmarshal(raw, &elements); err != nil {
			return err
		}
		var table bytes.Buffer
		t := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, header)
		for _, e := range elements {
			cells := row(e)
			text := make([]string, len(cells))
			for i, cell := range cells {
				text[i] = fmt.Sprint(cell)
			}
			fmt.Fprintln(t, strings.Join(text, "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		rows := strings.SplitAfter(table.String(), "\n")
		out := bytes.NewBufferString(rows[0])
		for i, e := range elements {
			out.WriteString(rows[i+1])
			for _, line := range lines(e) {
				if line != "" {
					fmt.Fprintf(out, "    %s\n", line)
				}
			}
		}
		_, err := out.WriteTo(w)
		return err
	}
}

// bandwidth renders a pod's limits in both directions.
func bandwidth(b *attach.Bandwidth) string {
	if b == nil {
		return "-"
	}
	return bitRate(b.IngressRate) + "/" + bitRate(b.EgressRate)
}

// bitRate renders bits per second, of which 0 is no limit.
func bitRate(bits uint64) string {
	if bits == 0 {
		return "-"
	}
	f, units := float64(bits), []string{"b/s", "kb/s", "Mb/s", "Gb/s", "Tb/s"}
	for ; f >= 1000 && len(units) > 1; units = units[1:] {
		f /= 1000
	}
	return fmt.Sprintf("%.4g %s", f, units[0])
}

// offloadTable renders the ports in a table, with why one has fewer queues than it should, and below it why TAPs have
// the engine that they have: all the same one.
func offloadTable(raw []byte, w io.Writer) error {
	table := blocksOf("PORT\tENGINE\tCHECKSUM\tTSO4\tTSO6\tECN\tUSO\tTRAINS", func(o observe.Offload) []any {
		return []any{o.Port, or(o.Engine), o.Checksum, o.TSO4, o.TSO6, o.ECN, o.USO, or(o.Trains)}
	}, func(o observe.Offload) []string { return []string{o.OneQueue} })
	if err := table(raw, w); err != nil {
		return err
	}
	var offloads []observe.Offload
	if err := json.Unmarshal(raw, &offloads); err != nil {
		return err
	}
	i := slices.IndexFunc(offloads, func(o observe.Offload) bool { return o.Engine != "" })
	if i < 0 {
		return nil
	}
	o := offloads[i]
	fmt.Fprintf(w, "TAPs are read and written by %s: %s.\n", o.Engine, o.EngineReason)
	if o.IOUring != 0 {
		fmt.Fprintf(w, "In the trial at start a small frame from TAP to TAP took %d ns by readwrite and %d ns by io_uring.\n", o.ReadWrite, o.IOUring)
	}
	return nil
}

// or returns the value, or "-" for a zero one: an empty cell in the middle of a row hides which column is
// which from people, and from awk.
func or[T comparable](v T) any {
	var zero T
	if v == zero {
		return "-"
	}
	return v
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }

// age says how long ago something was, in the largest unit that fits.
func age(now, at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	d := max(0, now.Sub(at)) // below 0 when the clock was set in between
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}} {
		if d >= u.unit {
			return fmt.Sprintf("%d %s ago", d/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%d s ago", d/time.Second)
}

// held says for how long a station that moved too often stays where it is.
func held(now, until time.Time) string {
	if d := until.Sub(now); d > 0 {
		return fmt.Sprintf("%d s", (d+time.Second-1)/time.Second)
	}
	return "-"
}

// keyTable renders an object with one row per key.
func keyTable(raw []byte, w io.Writer) error {
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KEY\tVALUE")
	for _, key := range slices.Sorted(maps.Keys(object)) {
		fmt.Fprintf(t, "%s\t%s\n", key, cell(object[key]))
	}
	return t.Flush()
}

// cell prints a list of objects as JSON, which Go's own form of maps is not, and what is not set as "-".
func cell(v any) string {
	list, _ := v.([]any)
	switch {
	case v == nil || v == "":
		return "-"
	case slices.ContainsFunc(list, func(e any) bool { _, object := e.(map[string]any); return object }):
		text, _ := json.Marshal(v) // it comes from JSON
		return string(text)
	}
	return fmt.Sprint(v)
}

func join[T any](values []T) string {
	text := make([]string, len(values))
	for i, v := range values {
		text[i] = fmt.Sprint(v)
	}
	return strings.Join(text, ",")
}
