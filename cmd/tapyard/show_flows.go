package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"tapyard/switch/observe"
)

func showFlowsCommand(opts *showOptions) *cobra.Command {
	limit, vni, address := observe.DefaultFlows, int64(-1), ""
	cmd := opts.command(view{name: "flows", short: "Which conversations go through the switch, the most recent first", table: flowTable,
		query: func() (url.Values, error) {
			var prefix netip.Prefix
			if address != "" {
				var err error
				if prefix, err = observe.ParseAddrOrPrefix(address); err != nil {
					return nil, err
				}
			}
			return observe.FlowQuery{Limit: limit, Prefix: prefix, VNI: vni}.Values(), nil
		}})
	cmd.Long = cmd.Short + `.
The agent tracks them if its configuration says 'flows: true': TCP, UDP and echo, whose PORT is the identifier.
FROM began the conversation, through the switch's PORT. Below the table stands how full it is, and what it had
no room for: that is forwarded all the same.`
	f := cmd.Flags()
	f.IntVar(&limit, "limit", limit, fmt.Sprintf("at most that many, up to %d", observe.MaxFlows))
	f.StringVar(&address, "address", "", "only those from or to an address or prefix, such as 10.244.1.3 or fd00:10:244::/48")
	f.Int64Var(&vni, "vni", vni, "only those of one network; -1: all")
	return cmd
}

// flowTable renders the flows and, below them, the figures of the whole table.
func flowTable(raw []byte, w io.Writer) error {
	var f struct {
		observe.Flows
		List json.RawMessage `json:"flows"`
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return err
	}
	if !f.Enabled {
		_, err := fmt.Fprintln(w, "the agent doesn't track flows; 'flows: true' in "+defaultConfig+", or --flows, and a restart have it do so")
		return err
	}
	now := time.Now()
	rows := tableOf("VNI\tPROTOCOL\tFROM\tTO\tSTATE\tPORT\tLAST SEEN\tTIMEOUT", func(e observe.Flow) []any {
		return []any{e.VNI, e.Protocol, e.From, e.To, e.State, or(e.Port), age(now, e.LastSeen), fmt.Sprintf("%d s", e.Timeout)}
	})
	if err := rows(f.List, w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d of %d places taken; since the start %d created, %d ended, %d evicted early, %d dropped with their port; %d frames refused\n",
		f.Live, f.Capacity, f.Created, f.Ended, f.Evicted, f.Dropped, f.Refused)
	return err
}
