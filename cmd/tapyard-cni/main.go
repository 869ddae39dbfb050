// Command tapyard-cni is the CNI plugin, to be installed in /opt/cni/bin. It speaks the CNI protocol on its
// environment, standard input and standard output, and leaves the work to the agent; see package cniplugin.
package main

import (
	"context"
	"os"

	"tapyard/cniplugin"
)

func main() {
	os.Exit(cniplugin.Run(context.Background(), os.Getenv, os.Stdin, os.Stdout))
}
