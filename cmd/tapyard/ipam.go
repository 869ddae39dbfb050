package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"tapyard/switch/attach"
	"tapyard/switch/observe"
)

func ipamCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ipam", Short: "The addresses of this node's pods, and the records of who has them", Args: cobra.NoArgs}
	cmd.AddCommand(auditCommand())
	return cmd
}

// auditOptions are the flags of `ipam audit`.
type auditOptions struct {
	config, runDir, stateDir, output string
	repair, rebuild                  bool
}

func auditCommand() *cobra.Command {
	var o auditOptions
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Compare each address with the record, the device, the namespace and the port behind it",
		Long: `Compare each address of a pod with the record, the device, the namespace and the port behind it. A running
agent is asked; without one, the database is compared with the devices. What is wrong stands below its row, with
the way out, and makes the command fail.

With --repair what can be repaired is: a record whose namespace is gone is removed, and so is a device that has
no record; a device gets back the addresses that it lacks; an address that nobody has is released.

With --rebuild the database is written anew, because the agent has ended over it: a copy of each record is in the
alias of its device (ip -d link), and the devices are searched in all network namespaces that have a mount or a
process. The damaged file stays beside the new one. The agent must not run.`,
		Args: cobra.NoArgs,
	}
	first := defaults()
	f := cmd.Flags()
	f.StringVar(&o.config, "config", defaultConfig, "the agent's configuration file, which names the two directories")
	f.StringVar(&o.runDir, "run-dir", first.RunDir, "directory of cni.sock and admin.sock")
	f.StringVar(&o.stateDir, "state-dir", first.StateDir, "directory of the attachments' database")
	f.StringVarP(&o.output, "output", "o", "", "json instead of a table")
	f.BoolVar(&o.repair, "repair", false, "repair what can be, and say what was done")
	f.BoolVar(&o.rebuild, "rebuild", false, "write a damaged database anew")
	cmd.MarkFlagsMutuallyExclusive("repair", "rebuild")
	cmd.MarkFlagsMutuallyExclusive("output", "rebuild")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := readConfig(o.config, f.Changed("config"))
		if err != nil {
			return err
		}
		if !f.Changed("run-dir") {
			o.runDir = c.RunDir
		}
		if !f.Changed("state-dir") {
			o.stateDir = c.StateDir
		}
		if o.rebuild {
			return rebuild(o.stateDir, cmd.OutOrStdout())
		}
		return o.audit(cmd.Context(), cmd.OutOrStdout())
	}
	return cmd
}

func (o *auditOptions) audit(ctx context.Context, w io.Writer) error {
	if o.output != "" && o.output != "json" {
		return fmt.Errorf("output %q: leave it out for a table, or use json", o.output)
	}
	rows, err := observe.Client{Socket: filepath.Join(o.runDir, "admin.sock")}.Audit(ctx, o.repair)
	if errors.Is(err, observe.ErrNoAgent) {
		rows, err = attach.AuditStopped(ctx, o.stateDir, o.repair)
	}
	if err != nil {
		return err
	}
	if o.output == "json" {
		err = writeJSON(w, rows)
	} else {
		err = auditTable(rows, w)
	}
	if err != nil {
		return err
	}
	wrong := 0
	for _, r := range rows {
		if len(r.Wrong) > 0 {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d are wrong", wrong, len(rows))
	}
	return nil
}

func writeJSON(w io.Writer, rows []attach.Audited) error {
	if rows == nil {
		rows = []attach.Audited{}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(rows)
}

func auditTable(rows []attach.Audited, w io.Writer) error {
	raw, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	return blocksOf("ADDRESS\tVNI\tOWNER\tRECORD\tDEVICE\tNAMESPACE\tPUBLISHED", func(r attach.Audited) []any {
		address, published := any("-"), "unknown"
		if r.Address.IsValid() {
			address = r.Address
		}
		if r.Published != nil {
			published = yes(*r.Published)
		}
		return []any{address, r.VNI, r.Owner, yes(r.Record), or(r.Device), or(r.Netns), published}
	}, func(r attach.Audited) (lines []string) {
		for _, done := range r.Repaired {
			lines = append(lines, "repaired: "+done)
		}
		for _, wrong := range r.Wrong {
			lines = append(lines, "WRONG: "+wrong)
		}
		return lines
	})(raw, w)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func rebuild(stateDir string, w io.Writer) error {
	out, err := attach.Rebuild(stateDir)
	if err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	for _, a := range out.Records {
		fmt.Fprintf(w, "recorded %s %v, %s in %s\n", a.Name, a.Addrs(), a.IfName, a.NetnsPath)
	}
	for _, s := range out.Short {
		fmt.Fprintf(w, "recorded in part, since not all of it fits into a device's alias; create it anew when you can: %s\n", s)
	}
	if out.Aside != "" {
		fmt.Fprintf(w, "the damaged database is now %s\n", out.Aside)
	}
	fmt.Fprintf(w, "%d pods recorded; the agent can be started\n", len(out.Records))
	for _, l := range out.Lost {
		fmt.Fprintf(w, "not recorded; delete its pod: %s\n", l)
	}
	if n := len(out.Lost); n > 0 {
		return fmt.Errorf("%d devices are without a record", n)
	}
	return nil
}
