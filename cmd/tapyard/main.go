// Command tapyard is a userspace switch for pods: the agent of a node, the commands that look into it, a
// lab of several nodes on one machine, and benchmarks.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"tapyard/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := rootCommand().ExecuteContext(ctx)
	var code bench.ExitCode
	if errors.As(err, &code) { // of a command that `lab exec` ran, which has said what was wrong
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tapyard:", err)
		os.Exit(1)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "tapyard",
		Short: "A userspace switch for pods",
		Long: `Tapyard connects pods, on one node and across nodes, on kernels without overlay support:
one process per node reads frames from the pods' TAP devices, switches and routes them, and carries
them to other nodes in UDP (VXLAN).

  tapyard lab up                 three nodes with two pods each, in network namespaces of this machine
  tapyard lab exec n1p1 -- ip a  look into a pod
  tapyard show ports --node n1   look into a node's agent
  tapyard demo                   all of it in a minute, then everything is gone again`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(agentCommand(), installCommand(), reloadCommand(), showCommand(), doctorCommand(), ipamCommand(), uninstallCommand(), bench.LabCommand(), bench.DemoCommand(), bench.Command())
	return root
}
