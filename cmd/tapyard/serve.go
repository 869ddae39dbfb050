package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"

	"tapyard/cniplugin/podapi"
	"tapyard/switch/attach"
	"tapyard/switch/control"
	"tapyard/switch/observe"
)

// serve answers on the sockets, follows the peers file and waits for the end.
func (a *agent) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var servers []func(context.Context) error
	cni, err := a.listen("cni.sock")
	if err != nil {
		return err
	}
	admin, err := a.listen("admin.sock")
	if err != nil {
		cni.Close()
		return err
	}
	servers = append(servers,
		func(ctx context.Context) error { return (&podapi.Server{Handler: a.pods, Log: a.log}).Serve(ctx, cni) },
		func(ctx context.Context) error { return a.source().Serve(ctx, admin) })
	servers = append(servers, func(ctx context.Context) error {
		a.pods.Sweep(ctx)
		return nil
	}, a.watchRules, a.watchDevices, a.watchHangup, a.watchdog, a.keepMemory, a.proveAgain)
	if a.cfg.Mode == modeRouted {
		servers = append(servers, a.watchPeers, a.watchUnderlay)
	}
	ended := make(chan error, len(servers))
	for _, s := range servers {
		go func() {
			err := s(ctx)
			if err != nil {
				cancel(err)
			}
			ended <- err
		}()
	}
	a.ready = true
	a.dropRest()
	a.reloading.Lock()
	err = a.writeConflist(a.cfg)
	a.reloading.Unlock()
	if err != nil {
		a.log.Error("pods can be attached, but container runtimes don't know", "error", err)
	}
	a.log.Info("ready", "mode", a.cfg.Mode, "workers", a.cfg.workers(), "mtu", a.node.MTU, "pods", len(a.pods.List()))
	a.notify(daemon.SdNotifyReady)
	<-ctx.Done()
	a.notify(daemon.SdNotifyStopping)
	var errs []error
	for range servers {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

func (a *agent) watchPeers(ctx context.Context) error {
	a.peers.Watch(ctx, a.again, a.log, func(s control.State) error {
		if err := a.controller.Apply(s); err != nil {
			return err // the state before stays in force, which it doesn't when the host alone fails
		}
		err := errors.Join(a.setRoutes(s), a.setEgress())
		if err != nil {
			a.log.Error("the switch has the new peers, the host's routes or masquerading have not", "error", err)
		}
		return nil
	})
	return nil
}

// watchUnderlay has pods and tunnels follow the MTU of the underlay.
func (a *agent) watchUnderlay(ctx context.Context) error {
	return attach.WatchMTU(ctx, a.cfg.Underlay[0], func(underlay int) {
		tunnel := underlay - a.cfg.overhead()
		pods := cmp.Or(a.cfg.MTU, tunnel)
		if pods > tunnel {
			a.log.Warn("pods may send larger packets than tunnels carry: senders learn that from ICMP",
				"mtu", pods, "tunnels", tunnel, "underlay", underlay)
		}
		a.mtu.Store(int64(pods))
		err := errors.Join(a.controller.SetMTU(pods, tunnel), a.host.SetMTU(pods), a.pods.SetMTU(ctx, pods))
		if err != nil {
			a.log.Error("the MTU of the underlay has changed, and not everything follows", "underlay", underlay, "pods", pods, "error", err)
			return
		}
		a.log.Info("MTU", "underlay", underlay, "tunnels", tunnel, "pods", pods)
	})
}

// listen replaces the socket that a predecessor left, unless somebody still answers on it.
func listen(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listen on %s: another agent answers there; stop it, or give this one its own runDir", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func (a *agent) source() *observe.Source {
	s := &observe.Source{Switch: a.sw, Attached: a.pods.List, State: a.controller.State, VTEPs: a.vteps, Node: a.controller.Node, Config: a.config, Engine: a.engine, Audit: a.pods.Audit, Reload: a.serveReload}
	if a.host != nil {
		s.HostMAC = a.host.MAC
	}
	return s
}

// config returns what is in force, for `show config`.
func (a *agent) config() any {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	c := *a.cfg
	c.MTU, c.Workers = int(a.mtu.Load()), c.workers()
	return &c
}
