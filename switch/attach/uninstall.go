package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

// StillAttached is the error of an Uninstall that would cut pods off: a line for each.
type StillAttached []string

// Error names the pods.
func (s StillAttached) Error() string {
	return fmt.Sprintf("%d still attached:\n  %s", len(s), strings.Join(s, "\n  "))
}

// UninstallConfig says what Uninstall does.
type UninstallConfig struct {
	StateDir string
	Pods     bool              // remove the devices of pods that are still attached
	Removed  func(what string) // is told of each thing that was there, once it is gone
}

// Uninstall removes what an agent that has ended left in the calling thread's network namespace and in
// StateDir: the nftables tables, tapyard0, the records and, if wanted, the devices of pods; else pods that
// are still attached are a StillAttached error. Before an error of that kind, or because an agent runs,
// nothing is removed; after any other it may be repeated.
func Uninstall(ctx context.Context, cfg UninstallConfig) error {
	u := uninstall{UninstallConfig: cfg}
	err := u.claim()
	if err == nil {
		err = u.remove(ctx)
	}
	return errors.Join(err, u.close())
}

// uninstall holds what an agent would need to start, so that none does meanwhile.
type uninstall struct {
	UninstallConfig
	host *port.TAP // nil if there is no tapyard0
	pods *Manager  // nil if there are no records
}

func (u *uninstall) claim() (err error) {
	if _, err := netlink.LinkByName(HostDevice); err == nil {
		if u.host, err = port.OpenTAP(port.TAPConfig{Device: HostDevice, PortName: HostDevice}); err != nil {
			return err
		}
	} else if !isNoLink(err) {
		return fmt.Errorf("host device %s: %w", HostDevice, err)
	}
	if _, err := os.Stat(u.database()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// Without subnets the records' addresses can't be claimed, which matters to a pod that is to be served.
	u.pods, err = Open(Config{StateDir: u.StateDir, L2: true, Log: slog.New(slog.DiscardHandler),
		MapPorts: func() error { return nil }}) // the table goes as a whole
	return err
}

func (u *uninstall) database() string { return filepath.Join(u.StateDir, database) }

func (u *uninstall) close() (err error) {
	if u.pods != nil {
		err = u.pods.Close()
	}
	if u.host != nil {
		err = errors.Join(err, u.host.Close())
	}
	return err
}

func (u *uninstall) remove(ctx context.Context) error {
	var errs []error
	if u.pods != nil {
		if attached := u.attached(); len(attached) > 0 && !u.Pods {
			return attached
		}
		errs = append(errs, u.removePods(ctx))
	}
	return errors.Join(append(errs, u.removeTable(), u.removeGuards(), u.removeHost())...)
}

// attached lists the pods that have their device, and those of which we can't tell.
func (u *uninstall) attached() (list StillAttached) {
	for _, e := range u.pods.snapshot() {
		if has, err := u.hasDevice(e.a); err != nil {
			list = append(list, fmt.Sprintf("%s: %v", describe(e.a), err))
		} else if has {
			list = append(list, describe(e.a))
		}
	}
	return list
}

func describe(a Attachment) string {
	return fmt.Sprintf("%s %v, %s in %s", a.Name, a.Addrs(), a.IfName, plain(a.NetnsPath))
}

// plain quotes a path that would garble a terminal.
func plain(path string) string {
	if quoted := strconv.Quote(path); quoted != `"`+path+`"` {
		return quoted
	}
	return path
}

func (u *uninstall) hasDevice(a Attachment) (bool, error) {
	fd, err := u.pods.openRecorded(a)
	if err == nil {
		defer unix.Close(fd)
		err = hasDevice(fd, a.Key())
	}
	if errors.Is(err, errGone) {
		return false, nil
	}
	return err == nil, err
}

// hasDevice returns errGone if there is none.
func hasDevice(netns int, key string) error {
	p, err := openPod(netns)
	if err != nil {
		return err
	}
	defer p.Close()
	_, err = p.ours(key)
	return err
}

// removePods removes the records only when no device is left that they are needed for.
func (u *uninstall) removePods(ctx context.Context) error {
	var errs []error
	for _, e := range u.pods.snapshot() {
		has, _ := u.hasDevice(e.a) // what is wrong comes from Del
		err := u.pods.Del(ctx, Request{ContainerID: e.a.ContainerID, IfName: e.a.IfName, NetnsFD: -1})
		if err == nil && has {
			u.Removed("device of pod " + describe(e.a))
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(u.database()); err != nil {
		return fmt.Errorf("remove the records: %w", err)
	}
	u.Removed("records of attached pods " + u.database())
	return nil
}

func (u *uninstall) removeTable() error {
	removed, err := removeEgress()
	if removed {
		u.Removed("nftables table inet " + egressTable.Name)
	}
	return err
}

// removeGuards removes the tables that a kill left: those of other agents' uplinks and pods stay.
func (u *uninstall) removeGuards() error {
	pruned, err := port.PruneGuards()
	for _, device := range pruned {
		u.Removed("nftables table netdev " + port.GuardName(device))
	}
	return err
}

func (u *uninstall) removeHost() error {
	if u.host == nil {
		return nil
	}
	err := u.host.Remove()
	u.host = nil // closed
	if err != nil {
		return fmt.Errorf("remove %s: %w", HostDevice, err)
	}
	u.Removed("device " + HostDevice + " with its addresses and routes")
	return nil
}
