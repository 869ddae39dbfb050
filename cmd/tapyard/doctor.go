package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tapyard/switch/selftest"
)

func doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong on this node",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(doctorOffloadsCommand())
	return cmd
}

func doctorOffloadsCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "offloads",
		Short: "Prove on this kernel, with real bytes, each offload that the switch uses",
		Long: `Moves TCP streams and UDP trains between two network namespaces of its own, over TAP devices as pods have them,
and frames between two tunnels, and compares every byte at the far end. It takes a tenth of a second, disturbs
nothing and leaves nothing behind. An agent does the same when it starts, and does without what fails; 'tapyard show
offloads' tells what it uses, and 'tapyard show peers' how super-frames cross to each peer. The exit status is 1 if anything fails.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("output %q: leave it out for a table, or use json", output)
			}
			results, err := selftest.Run()
			if err != nil {
				return err
			}
			if err := writeResults(cmd.OutOrStdout(), results, output == "json"); err != nil {
				return err
			}
			for _, r := range results {
				if !r.OK() {
					return fmt.Errorf("%s doesn't work on this kernel", r.Name)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, instead of a table")
	return cmd
}

func writeResults(w io.Writer, results []selftest.Result, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(results)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "OFFLOAD\tWORKS\tPROOF\tTOOK")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%t\t%s\t%v\n", r.Name, r.OK(), r.Proof, r.Took)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		if !r.OK() {
			fmt.Fprintf(w, "\n%s: %s\n", r.Name, r.Err)
		}
	}
	return nil
}
