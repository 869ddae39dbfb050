package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Command returns the command `bench` with a subcommand per benchmark.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   benchVerb,
		Short: "measure the switch beside others, on this machine",
		Long: `Measures the switch beside other ways to join pods, in network namespaces of its own on this machine.
Subjects are measured in turn, A B A B; rows that compare are the median of the ratios of neighbouring runs,
and above 1 means that the switch is better. Progress goes to standard error.`,
	}
	cmd.AddCommand(
		compareCommand("pps", "frames per second between two pods on one node", PPS),
		compareCommand("tcp", "throughput of one TCP stream between two pods on one node", TCP),
		workerCommand(),
	)
	return cmd
}

// compareCommand is the command of a benchmark that compares with peers.
func compareCommand(name, short string, benchmark func(context.Context, Config) (*Report, error)) *cobra.Command {
	var cfg Config
	var output string
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("output %q: it is table or json", output)
			}
			cmd.SilenceUsage = true
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			cfg.Progress = cmd.ErrOrStderr()
			report, err := benchmark(ctx, cfg)
			if err != nil {
				return err
			}
			if output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(report)
			}
			return report.WriteTable(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringSliceVar(&cfg.Peers, "peers", []string{"raw"}, "what to measure beside the switch: "+peerNames())
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", 5, "rounds, in each of which every subject runs once")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}
