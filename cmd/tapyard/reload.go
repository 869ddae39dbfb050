package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"tapyard/switch/control"
	"tapyard/switch/control/static"
	"tapyard/switch/observe"
)

func reloadCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the agent read its configuration and peers again",
		Long: `Have the agent read its configuration and peers again, and say what changed. These keys change without a restart:

  ` + strings.Join(reloadableKeys(), ", ") + `

Of the others it says that they need a restart, which pods don't notice under systemd. A configuration or a peers file
with a mistake is refused as a whole. SIGHUP does the same; what came of it is in the log then.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&socket, "socket", filepath.Join(defaults().RunDir, "admin.sock"), "the agent's admin socket")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		b, err := observe.Client{Socket: socket}.Post(cmd.Context(), "reload")
		if err != nil {
			return err
		}
		var r reloaded
		if err := json.Unmarshal(b, &r); err != nil {
			return fmt.Errorf("answer of %s: %w", socket, err)
		}
		r.print(cmd.OutOrStdout())
		return nil
	}
	return cmd
}

// reloaded says what came of a reload.
type reloaded struct {
	Changed []string `json:"changed"`
	Restart []string `json:"restart"` // keys that have another value in the file, and need a restart
}

func (r reloaded) print(out io.Writer) {
	if len(r.Changed) > 0 {
		fmt.Fprintln(out, "changed:", strings.Join(r.Changed, ", "))
	} else {
		fmt.Fprintln(out, "nothing changed in the configuration; the peers file was read again")
	}
	if len(r.Restart) > 0 {
		fmt.Fprintln(out, "changed in the file only, until 'systemctl restart tapyard':", strings.Join(r.Restart, ", "))
	}
}

// reloadable has for each key that may change while the agent runs what makes it so, given the new configuration.
var reloadable = map[string]func(*agent, *config) error{
	"logLevel":    func(a *agent, c *config) error { a.level.Set(c.LogLevel); return nil },
	"ageing":      func(a *agent, c *config) error { a.sw.SetAgeing(time.Duration(c.Ageing) * time.Second); return nil },
	"bumLimit":    (*agent).setRules,
	"sourceGuard": (*agent).setRules,
	"flows":       (*agent).setRules,
	"cniConfDir":  (*agent).setConflist,
	"conflist":    (*agent).setConflist,
}

func reloadableKeys() []string {
	var keys []string
	for _, f := range configFields() {
		if key := f.Tag.Get("yaml"); reloadable[key] != nil {
			keys = append(keys, key)
		}
	}
	return keys
}

func configFields() []reflect.StructField { return reflect.VisibleFields(reflect.TypeFor[config]()) }

func (a *agent) setRules(c *config) error {
	errs := []error{a.controller.SetRules(control.Rules{Guard: c.SourceGuard, BUM: c.BUMLimit, Flows: c.Flows})}
	for _, v := range a.sw.Ports() {
		if v.Port != nil && v.Port.Kind() == uplinkKind {
			errs = append(errs, a.sw.Configure(v.ID, nil, uplinkShare*c.BUMLimit))
		}
	}
	return errors.Join(errs...)
}

func (a *agent) setConflist(c *config) error { return a.writeConflist(c) }

// reload reads the configuration again and makes so what may change, all or nothing: an error means that a file is wrong
// and nothing was changed, or that the kernel or the disk refused something, which is named.
func (a *agent) reload() (r reloaded, err error) {
	a.notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%s", daemon.SdNotifyReloading, daemon.SdNotifyMonotonicUsec()))
	defer a.notify(daemon.SdNotifyReady)
	next, err := a.reread()
	if err == nil {
		err = next.check()
	}
	if err != nil {
		return r, fmt.Errorf("nothing is changed: %w", err)
	}
	if a.peers != nil {
		if _, err := (&static.File{Path: a.cfg.PeersFile}).Load(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return r, fmt.Errorf("nothing is changed: %w", err)
		}
		select {
		case a.again <- os.Interrupt:
		default: // it will read it anyway
		}
	}
	r, err = a.changeTo(&next)
	if len(r.Restart) > 0 {
		a.log.Warn("changed in the configuration file, and in force after a restart", "keys", r.Restart)
	}
	if len(r.Changed) > 0 {
		a.log.Info("configuration changed", "keys", r.Changed)
	}
	return r, err
}

// changeTo takes over what differs in next.
func (a *agent) changeTo(next *config) (r reloaded, err error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	now, then := reflect.ValueOf(a.cfg).Elem(), reflect.ValueOf(next).Elem()
	var errs []error
	for _, f := range configFields() {
		if reflect.DeepEqual(now.FieldByIndex(f.Index).Interface(), then.FieldByIndex(f.Index).Interface()) {
			continue
		}
		key := f.Tag.Get("yaml")
		change := reloadable[key]
		if change == nil {
			r.Restart = append(r.Restart, key)
			continue
		}
		if err := change(a, next); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
			continue
		}
		now.FieldByIndex(f.Index).Set(then.FieldByIndex(f.Index))
		r.Changed = append(r.Changed, key)
	}
	return r, errors.Join(errs...)
}

// watchHangup reloads at SIGHUP.
func (a *agent) watchHangup(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.hup:
			if _, err := a.reload(); err != nil {
				a.log.Error("reload", "error", err)
			}
		}
	}
}

// serveReload answers 'tapyard reload'.
func (a *agent) serveReload(w http.ResponseWriter, _ *http.Request) {
	r, err := a.reload()
	if err != nil {
		a.log.Error("reload", "error", err)
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(r) // the asker has gone
}
