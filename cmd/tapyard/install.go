package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

//go:embed tapyard.service
var unitText []byte

//go:embed tapyard.yaml
var firstConfig []byte

const (
	defaultPrefix = "/usr/local"
	runtimeDir    = "/etc/cni/net.d" // as in tapyard.yaml and tapyard.service
)

func installCommand() *cobra.Command {
	in := installation{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put program, plugin, service and manual on this node",
		Long: `Put program, plugin, service and manual on this node, and say what was done. Files that are the same already stay, as does
a configuration that is there; so it may be repeated, and is how an upgrade is made:

  tapyard install && systemctl enable --now tapyard     # the first time, after editing /etc/tapyard/tapyard.yaml
  tapyard install && systemctl restart tapyard          # an upgrade: pods keep their connections

The plugin is taken from the file tapyard-cni beside this program. 'tapyard uninstall' removes what the agent
leaves on the node, not these files.`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&in.root, "root", "/", "directory that stands for /, for packages and images")
	f.StringVar(&in.prefix, "prefix", defaultPrefix, "where program, service, manual and completion go; packages say /usr")
	f.StringVar(&in.plugins, "cni-bin-dir", "/opt/cni/bin", "where container runtimes look for plugins")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		in.out = cmd.OutOrStdout()
		return in.run(cmd.Root())
	}
	return cmd
}

// installation is where files go.
type installation struct {
	root, prefix, plugins string
	out                   io.Writer
}

func (in *installation) run(root *cobra.Command) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	plugin := filepath.Join(filepath.Dir(program), "tapyard-cni")
	if _, err := os.Stat(plugin); errors.Is(err, fs.ErrNotExist) { // this program is where it was installed
		plugin = filepath.Join(in.plugins, "tapyard")
	}
	unit := bytes.ReplaceAll(unitText, []byte(defaultPrefix+"/bin/"), []byte(in.prefix+"/bin/"))
	unitPath := filepath.Join(in.prefix, "lib/systemd/system/tapyard.service")
	for _, install := range []func() error{
		func() error { return in.copy(program, filepath.Join(in.prefix, "bin/tapyard")) },
		func() error { return in.copy(plugin, filepath.Join(in.plugins, "tapyard")) },
		func() error { return in.put(unitPath, unit, 0o644) },
		func() error {
			return in.put(filepath.Join(in.prefix, "share/tapyard", conflistName), conflistTemplate, 0o644)
		},
		func() error { return in.keep(defaultConfig, firstConfig) },
		func() error { return os.MkdirAll(filepath.Join(in.root, runtimeDir), 0o755) }, // the service may write there if it is there
		func() error { return in.manual(root) },
		func() error { return in.completion(root) },
	} {
		if err := install(); err != nil {
			return fmt.Errorf("install: %w", err)
		}
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil || in.root != "/" {
		return nil
	}
	if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl daemon-reload: %w: %s", err, bytes.TrimSpace(out))
	}
	fmt.Fprintln(in.out, "systemd knows the unit; 'systemctl enable --now tapyard' starts the agent, 'systemctl restart tapyard' upgrades a running one")
	return nil
}

// copy installs a program.
func (in *installation) copy(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return in.put(to, content, 0o755)
}

// keep installs a file unless there is one.
func (in *installation) keep(path string, content []byte) error {
	if _, err := os.Lstat(filepath.Join(in.root, path)); err == nil {
		fmt.Fprintln(in.out, "kept     ", path)
		return nil
	}
	return in.put(path, content, 0o644)
}

func (in *installation) put(path string, content []byte, mode fs.FileMode) error {
	changed, err := replaceFile(filepath.Join(in.root, path), content, mode)
	if err != nil {
		return err
	}
	if changed {
		fmt.Fprintln(in.out, "installed", path)
	} else {
		fmt.Fprintln(in.out, "unchanged", path)
	}
	return nil
}

// manual installs a page for each command.
func (in *installation) manual(cmd *cobra.Command) error {
	if cmd.HasParent() && (!cmd.IsAvailableCommand() || cmd.Name() == "completion") {
		return nil
	}
	var page bytes.Buffer
	cmd.DisableAutoGenTag = true
	date := time.Unix(0, 0) // the same program, the same page
	if err := doc.GenMan(cmd, &doc.GenManHeader{Section: "1", Source: "Tapyard", Manual: "Tapyard", Date: &date}, &page); err != nil {
		return fmt.Errorf("manual of %s: %w", cmd.CommandPath(), err)
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
	if err := in.put(filepath.Join(in.prefix, "share/man/man1", name), page.Bytes(), 0o644); err != nil {
		return err
	}
	for _, child := range cmd.Commands() {
		if err := in.manual(child); err != nil {
			return err
		}
	}
	return nil
}

func (in *installation) completion(root *cobra.Command) error {
	for _, shell := range []struct {
		path     string
		generate func(io.Writer) error
	}{
		{"share/bash-completion/completions/tapyard", func(w io.Writer) error { return root.GenBashCompletionV2(w, true) }},
		{"share/zsh/site-functions/_tapyard", root.GenZshCompletion},
		{"share/fish/vendor_completions.d/tapyard.fish", func(w io.Writer) error { return root.GenFishCompletion(w, true) }},
	} {
		var script bytes.Buffer
		if err := shell.generate(&script); err != nil {
			return fmt.Errorf("completion %s: %w", shell.path, err)
		}
		if err := in.put(filepath.Join(in.prefix, shell.path), script.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
