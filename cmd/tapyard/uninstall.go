package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tapyard/cniplugin/podapi"
	"tapyard/switch/attach"
)

func uninstallCommand() *cobra.Command {
	var configFile, runDir, stateDir string
	var pods bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove what the agent leaves on this node when it stops",
		Long: `Remove what the agent leaves on this node when it stops. It needs root, and the agent to be stopped:

  systemctl disable --now tapyard
  tapyard uninstall

Removed are
  - the nftables table inet tapyard, which masquerades what pods send beyond the cluster
  - the nftables tables netdev tapyard-..., which keep the host off pods' veth pairs and uplinks, of
    devices that no agent has any more
  - the device tapyard0, with the gateway addresses and the routes to the cluster
  - stateDir/tapyard.db, the records of attached pods, and sockets, tombstones and self-test results in runDir
  - the devices of pods that are still attached, but only with --pods

While an agent runs, or pods are still attached, it removes nothing and names them. These pods have no
network without an agent, but the next one would give it back: drain the node first or delete them. With
--pods their devices go, and nothing but creating such a pod anew brings it back.

Left as they are: configuration and peers file, which are yours, and the forwarding sysctls, which others
on this machine may need. net.ipv4.ip_forward and net.ipv6.conf.all.forwarding are at their defaults after
a reboot, as is accept_ra, which the agent sets to 2 where it was 1.

It may be repeated: what is gone already is not missed.`,
		Args: cobra.NoArgs,
	}
	first := defaults()
	f := cmd.Flags()
	f.StringVar(&configFile, "config", defaultConfig, "the agent's configuration file, which names the two directories")
	f.StringVar(&runDir, "run-dir", first.RunDir, "directory of cni.sock and admin.sock")
	f.StringVar(&stateDir, "state-dir", first.StateDir, "directory of the attachments' database")
	f.BoolVar(&pods, "pods", false, "remove the devices of pods that are still attached, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := readConfig(configFile, f.Changed("config"))
		if err != nil {
			return err
		}
		if f.Changed("run-dir") {
			c.RunDir = runDir
		}
		if f.Changed("state-dir") {
			c.StateDir = stateDir
		}
		return uninstall(cmd.Context(), &c, pods, cmd.OutOrStdout())
	}
	return cmd
}

func uninstall(ctx context.Context, c *config, pods bool, out io.Writer) error {
	sockets := []string{filepath.Join(c.RunDir, "admin.sock"), filepath.Join(c.RunDir, "cni.sock")}
	for _, s := range sockets {
		if conn, err := net.Dial("unix", s); err == nil {
			conn.Close()
			return fmt.Errorf("an agent answers on %s; stop it first: systemctl stop tapyard", s)
		}
	}
	nothing := true
	_, missing := os.Stat(filepath.Join(c.StateDir, "tapyard.db"))
	removed := func(what string) {
		nothing = false
		fmt.Fprintln(out, "removed", what)
	}
	err := attach.Uninstall(ctx, attach.UninstallConfig{StateDir: c.StateDir, Pods: pods, Removed: removed})
	if attached := (attach.StillAttached)(nil); errors.As(err, &attached) {
		return fmt.Errorf("%w\nnothing was removed: delete these pods first, or remove their devices with --pods and create them anew", err)
	}
	if err != nil {
		return err
	}
	paths := append(sockets, podapi.TombstoneDir(sockets[1]), filepath.Join(c.RunDir, proofsFile))
	if err := removeFiles(paths, []string{c.RunDir, c.StateDir}, removed); err != nil {
		return err
	}
	if nothing {
		fmt.Fprintln(out, "nothing to remove")
	} else if errors.Is(missing, fs.ErrNotExist) {
		fmt.Fprintf(out, "no records of pods in %s; if the agent had another state directory, name it by --config or --state-dir\n", c.StateDir)
	}
	return nil
}

// removeFiles removes what is ours, and folders only if nothing else is in them.
func removeFiles(paths, folders []string, removed func(string)) error {
	for _, path := range paths {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove: %w", err)
		}
		removed(path)
	}
	for _, folder := range folders {
		err := os.Remove(folder)
		switch {
		case err == nil:
			removed("empty directory " + folder)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY): // busy: a mount point
			return fmt.Errorf("remove directory: %w", err)
		}
	}
	return nil
}
