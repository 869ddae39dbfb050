package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// LabCommand returns the command `tapyard lab`.
func LabCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Several nodes with pods on this machine, in network namespaces",
		Long: `Several nodes with pods on this machine, in network namespaces: for learning, demonstrations and tests.

Each node (n1, n2, ...) is a namespace with an agent of its own and pods (n1p1, n1p2, ...) that the CNI plugin
attached. The nodes' network is an agent too, in mode l2. All namespaces are called tapyard-..., all files are
in ` + labDir + `; 'lab down' removes both, also after a crash.`,
		Args: cobra.NoArgs, // or a mistyped subcommand would print the help and succeed
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(labUpCommand(), labStatusCommand(), labExecCommand(), labProbeCommand(), labDownCommand(), labSuperviseCommand())
	return cmd
}

// bindLabConfig makes the flags that `lab up` and `demo` share.
func bindLabConfig(cmd *cobra.Command, cfg *LabConfig) {
	cmd.Flags().BoolVar(&cfg.Underlay6, "underlay6", false, "tunnels between nodes over IPv6")
	cmd.Flags().IntVar(&cfg.Workers, "workers", 0, "workers of each node's agent; 0: the agent's default")
	cmd.Flags().IntVar(&cfg.MTU, "mtu", 0, "MTU of the pods; 0: what the underlay leaves")
	cmd.Flags().StringVar(&cfg.PortType, "port-type", "", "how pods are connected: tap (default) or veth")
}

func labUpCommand() *cobra.Command {
	var cfg LabConfig
	cmd := &cobra.Command{
		Use: "up", Short: "Build a lab", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Progress = cmd.ErrOrStderr()
			l, err := LabUp(cmd.Context(), cfg)
			if err != nil {
				return fmt.Errorf("lab up: %w", err)
			}
			return l.writeStatus(cmd.OutOrStdout())
		},
	}
	cmd.Flags().IntVar(&cfg.Nodes, "nodes", 3, "number of nodes")
	cmd.Flags().IntVar(&cfg.Pods, "pods", 2, "number of pods on each node")
	bindLabConfig(cmd, &cfg)
	return cmd
}

func labDownCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End the lab and remove everything of it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := labDown(cmd.ErrOrStderr()); err != nil {
				return fmt.Errorf("lab down: %w", err)
			}
			return nil
		},
	}
}

func labStatusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "Show the lab's nodes, pods and processes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := LabOpen()
			if err != nil {
				return err
			}
			asJSON, err := wantsJSON(output)
			switch {
			case err != nil:
				return err
			case asJSON:
				return l.writeStatusJSON(cmd.OutOrStdout())
			}
			return l.writeStatus(cmd.OutOrStdout())
		},
	}
	bindOutput(cmd, &output)
	return cmd
}

func labExecCommand() *cobra.Command {
	return &cobra.Command{
		Use: "exec NAME -- COMMAND [ARGUMENT...]", Short: "Run a command in a pod or node, with its exit code",
		Example: "  tapyard lab exec n1p1 -- ip addr", Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := LabOpen()
			if err != nil {
				return err
			}
			name, err := l.netnsOf(args[0])
			if err != nil {
				return err
			}
			return labExec(name, args[1:])
		},
	}
}

func labSuperviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: labSuperviseVerb, Short: "the process that keeps a lab", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return labSupervise(cmd.Context()) },
	}
}

func labProbeCommand() *cobra.Command {
	var r ProbeRequest
	var bind, family, output string
	cmd := &cobra.Command{
		Use: "probe", Short: "Ask one pod or node from another, by ICMP, TCP and UDP", Args: cobra.NoArgs,
		Long: `Ask one pod or node from another, by ICMP, TCP and UDP, with sockets of our own on both sides. It shows the
round-trip time and the source address that the other side saw, and fails unless every question was answered.
A node is asked at its underlay address, or with --gateway at its pods' gateway address.`,
		Example: "  tapyard lab probe --from n1p1 --to n2p1 --family 6 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := wantsJSON(output)
			if err == nil {
				err = r.parse(bind, family)
			}
			if err != nil {
				return err
			}
			return runLabProbe(cmd, r, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.From, "from", "", "who asks: a pod, a node or \"internet\"")
	f.StringVar(&r.To, "to", "", "who is asked")
	f.StringVar(&bind, "bind", "", "source address; the kernel's choice without")
	f.StringSliceVar(&r.Protos, "proto", probeProtos, "protocols")
	f.StringVar(&family, "family", "both", "4, 6 or both")
	f.BoolVar(&r.Gateway, "gateway", false, "ask a node at its pods' gateway address")
	bindOutput(cmd, &output)
	_ = cmd.MarkFlagRequired("from") // fails for unknown flags only
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

// parse fills in what is given as text.
func (r *ProbeRequest) parse(bind, family string) (err error) {
	switch family {
	case "4":
		r.Families = []int{4}
	case "6":
		r.Families = []int{6}
	case "both":
		r.Families = []int{4, 6}
	default:
		return fmt.Errorf("family %q: it is 4, 6 or both", family)
	}
	if bind != "" {
		if r.Bind, err = netip.ParseAddr(bind); err != nil {
			return fmt.Errorf("--bind: %w", err)
		}
	}
	return nil
}

func runLabProbe(cmd *cobra.Command, r ProbeRequest, asJSON bool) error {
	l, err := LabOpen()
	if err != nil {
		return err
	}
	probes, err := l.Probe(cmd.Context(), r)
	if err != nil {
		return err
	}
	write := writeProbes
	if asJSON {
		write = writeProbesJSON
	}
	if err := write(cmd.OutOrStdout(), probes); err != nil {
		return err
	}
	for _, p := range probes {
		if !p.OK {
			return ExitCode(1)
		}
	}
	return nil
}

func writeProbesJSON(w io.Writer, probes []Probe) error { return writeIndented(w, probes) }

func writeProbes(w io.Writer, probes []Probe) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FROM\tTO\tADDRESS\tPROTO\tRESULT\tRTT\tSOURCE SEEN")
	for _, p := range probes {
		if !p.OK {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\tFAILED\t-\t%s\n", p.From, p.To, p.Address, p.Proto, p.Error)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\tok\t%.3f ms\t%s\n", p.From, p.To, p.Address, p.Proto, p.RTT, p.Source)
	}
	return t.Flush()
}

func bindOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "", "json, instead of a table")
}

func wantsJSON(output string) (bool, error) {
	if output != "" && output != "json" {
		return false, fmt.Errorf("output %q: leave it out for a table, or use json", output)
	}
	return output == "json", nil
}

// labStatus is the answer of `lab status -o json`.
type labStatus struct {
	Nodes     []LabNode    `json:"nodes"`
	Pods      []LabPod     `json:"pods"`
	Processes []LabProcess `json:"processes"`
}

func (l *Lab) writeStatusJSON(w io.Writer) error {
	processes, err := l.Processes()
	if err != nil {
		return err
	}
	return writeIndented(w, labStatus{l.Nodes, l.Pods, processes})
}

func (l *Lab) writeStatus(w io.Writer) error {
	processes, err := l.Processes()
	if err != nil {
		return err
	}
	pids := map[string]string{}
	for _, p := range processes {
		pids[p.Name] = fmt.Sprint(p.PID)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tON\tPROCESS\tADDRESSES\tPOD SUBNETS")
	row := func(name, on string, addresses, subnets any) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", name, on, orDash(pids[name]), listed(addresses), listed(subnets))
	}
	row(labSupervisor, "-", nil, nil)
	row(labLAN, "-", nil, nil)
	row(labInternet, labLAN, labHost(1, false), nil)
	for _, n := range l.Nodes {
		row(n.Name, labLAN, n.Underlay, n.PodSubnets)
	}
	for _, p := range l.Pods {
		row(p.Name, p.Node, p.Addresses, nil)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if _, alive := pids[labSupervisor]; !alive {
		_, err = fmt.Fprintln(w, "the supervisor is dead: 'tapyard lab down' removes what is left")
	} else if !l.Ready {
		_, err = fmt.Fprintln(w, "the lab is not ready")
	}
	return err
}

func writeIndented(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// listed writes a list without brackets, and nothing as a dash.
func listed(v any) string {
	if v == nil {
		return "-"
	}
	return orDash(strings.Trim(fmt.Sprint(v), "[]"))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
