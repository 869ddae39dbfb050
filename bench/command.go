package bench

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Command returns the command `bench` with a subcommand per benchmark.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   benchVerb,
		Short: "Measure the switch beside others, on this machine",
		Long: `Measures the switch beside other ways to join pods, in network namespaces of its own on this machine.
Subjects are measured in turn, A B A B; rows that compare are the median of the ratios of neighbouring runs,
and above 1 means that the switch is better. Progress goes to standard error.`,
		Args: cobra.NoArgs, // or a mistyped subcommand would print the help and succeed
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		compareCommand(),
		subjectsCommand("pps", "Frames per second between two pods on one node", PPS),
		subjectsCommand("tcp", "Throughput of one TCP stream between two pods on one node", TCP),
		udpCommand(),
		subjectsCommand("latency", "Round trips between two pods on one node, at low load and beside load", Latency),
		scaleCommand(),
		restartCommand(),
		hostileCommand(),
		fibCommand(),
		workersCommand(),
		cniCommand(),
		integrityCommand(),
		workerCommand(),
	)
	return cmd
}

// subjectsCommand is the command of a benchmark that compares with peers on one node.
func subjectsCommand(name, short string, benchmark func(context.Context, Config) (*Report, error)) *cobra.Command {
	var cfg Config
	cmd := benchmarkCommand(name, short, func(ctx context.Context, progress io.Writer) (*Report, error) {
		cfg.Progress = progress
		return benchmark(ctx, cfg)
	})
	cmd.Flags().StringSliceVar(&cfg.Peers, "peers", []string{"raw"}, "what to measure beside the switch: "+strings.Join(slices.Sorted(maps.Keys(sameNodePeers)), ", "))
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", 5, "rounds, in each of which every subject runs once")
	return cmd
}

func scaleCommand() *cobra.Command {
	var cfg Config
	short := fmt.Sprintf("What a frame costs with %d pods, %d peers and %d routes, beside %d of each", scaleLarge.pods, scaleLarge.peers, scaleLarge.routes, scaleSmall.pods)
	cmd := benchmarkCommand("scale", short, func(ctx context.Context, progress io.Writer) (*Report, error) {
		cfg.Progress = progress
		return Scale(ctx, cfg)
	})
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", floorPairs, "rounds, in each of which both nodes run once")
	return cmd
}

func restartCommand() *cobra.Command {
	var cfg RestartConfig
	cmd := benchmarkCommand("restart", "what pods of a lab notice when agents are killed", func(ctx context.Context, progress io.Writer) (*Report, error) {
		cfg.Progress = progress
		return Restart(ctx, cfg)
	})
	cmd.Flags().IntVar(&cfg.Kills, "kills", 10, "how many agents to kill, the nodes' in turn")
	return cmd
}

// benchmarkCommand runs a benchmark until it is done or interrupted, and writes its report.
func benchmarkCommand(name, short string, run func(context.Context, io.Writer) (*Report, error)) *cobra.Command {
	var output, page string
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := wantsJSON(output)
			if err != nil {
				return err
			}
			cmd.SilenceUsage = true
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			report, err := run(ctx, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			report.Command = strings.Join(os.Args, " ")
			report.Ended = time.Now().Format(time.RFC3339)
			if page != "" {
				if err := report.writeHTMLFile(page); err != nil {
					return err
				}
				fmt.Fprintln(cmd.ErrOrStderr(), "the report is at", page)
			}
			if asJSON {
				return writeIndented(cmd.OutOrStdout(), report)
			}
			return report.WriteTable(cmd.OutOrStdout())
		},
	}
	bindOutput(cmd, &output)
	cmd.Flags().StringVar(&page, "report", "", "also write a page with plots to this file, such as out.html")
	return cmd
}
