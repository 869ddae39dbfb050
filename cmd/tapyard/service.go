package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/handover"
	"tapyard/switch/port"
)

// What the agent is to its service manager: systemd, or whoever speaks sd_notify(3).

// notify tells the service manager, if there is one, and shows how many pods there are.
func (a *agent) notify(state string) {
	_, _ = daemon.SdNotify(false, fmt.Sprintf("%s\nSTATUS=%d pods", state, len(a.pods.List()))) // it finds out otherwise
}

// proofsPerDeadline is how many proofs of life fall into the time that the service manager waits for one.
const proofsPerDeadline = 3

// watchdog feeds the service manager's, as long as the workers and the slow path go round: a process that merely lives
// forwards nothing.
func (a *agent) watchdog(ctx context.Context) error {
	deadline, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("WATCHDOG_USEC and WATCHDOG_PID: %w", err)
	}
	if deadline == 0 {
		return nil
	}
	interval := deadline / proofsPerDeadline
	return every(ctx, interval, func() error {
		limited, cancel := context.WithTimeout(ctx, interval)
		defer cancel()
		if err := a.sw.Prove(limited); err != nil {
			if ctx.Err() == nil {
				a.log.Error("the switch is stuck; the service manager will end it", "error", err)
			}
			return nil
		}
		a.notify(daemon.SdNotifyWatchdog)
		return nil
	})
}

// inherit takes over what the process before has left with the service manager.
func (a *agent) inherit() (err error) {
	if a.store, err = handover.Open(); err != nil || a.store == nil {
		return err
	}
	if a.memory, err = handover.OpenMemory(a.store, vswitch.MemoryForm); err != nil {
		a.log.Warn("the tables can't be kept for the next start", "error", err)
		a.memory = nil
	}
	return nil
}

// openTunnel opens the tunnel, with what its sockets have received meanwhile.
func (a *agent) openTunnel() (tunnel *encap.Tunnel, err error) {
	cfg := encap.Config{Name: "vxlan", Local: a.cfg.Underlay[0], Port: a.cfg.Port,
		Workers: a.cfg.workers(), Peers: a.vteps, Singly: a.without.singly, Plain: a.without.slices}
	const name = "tunnel"
	adopted, err := a.store.Adopt(name, func(fds []int) (err error) {
		c := cfg
		c.Inherited = fds
		tunnel, err = encap.Open(c)
		return err
	})
	if err != nil {
		a.log.Warn("the kept sockets of the tunnel are of no use; new ones are opened", "error", err)
	}
	if !adopted {
		if tunnel, err = encap.Open(cfg); err != nil {
			return nil, err
		}
	}
	a.keep(name, tunnel.FDs()) // there may be more than before
	return tunnel, nil
}

// openUplink opens an uplink, with what its socket has received meanwhile.
func (a *agent) openUplink(cfg port.PacketConfig) (p *port.Packet, err error) {
	name := "uplink/" + cfg.Device
	adopted, err := a.store.Adopt(name, func(fds []int) (err error) {
		p, err = port.AdoptPacket(cfg, fds)
		return err
	})
	if err != nil {
		a.log.Warn("the kept socket of an uplink is of no use; a new one is opened", "uplink", cfg.Device, "error", err)
	}
	if adopted {
		return p, nil
	}
	if p, err = port.OpenPacket(cfg); err != nil {
		return nil, err
	}
	a.keep(name, p.FDs())
	return p, nil
}

// keep has the service manager keep descriptors. Without, all works but for the next restart, which loses frames.
func (a *agent) keep(name string, fds []int) {
	if err := a.store.Keep(name, fds...); err != nil {
		a.log.Warn("a restart of the agent will cost frames", "error", err)
	}
}

// dropRest closes what the process before has kept and this one has no use for.
func (a *agent) dropRest() {
	names, err := a.store.DropRest()
	if err != nil {
		a.log.Warn("descriptors of the last start that nobody wants", "error", err)
	}
	if len(names) > 0 {
		a.log.Info("descriptors of the last start that nobody wants are closed", "names", names)
	}
}

// recall tells the switch what the one before has learned.
func (a *agent) recall() {
	if a.memory == nil {
		return
	}
	content, err := a.memory.Read()
	if content != nil {
		var r vswitch.Recalled
		r, err = a.sw.Recall(content, a.peerIndex)
		if err == nil {
			a.log.Info("the last process's tables are there again", "what", r)
		}
	}
	if err != nil {
		a.log.Warn("the last process's tables can't be read; stations and flows are learned anew", "error", err)
	}
}

func (a *agent) peerIndex(name string) uint32 {
	if a.vteps == nil {
		return 0
	}
	if p := a.vteps.LookupName(name); p != nil {
		return p.Index
	}
	return 0
}

func (a *agent) peerName(index uint32) string {
	if a.vteps == nil {
		return ""
	}
	if p := a.vteps.Lookup(index); p != nil {
		return p.Name
	}
	return ""
}

// memoryInterval is how old the tables are at most that a kill leaves. All flows of a full table take 60 ms.
const memoryInterval = 5 * time.Second

// keepMemory writes the tables down, for the case that this process is killed.
func (a *agent) keepMemory(ctx context.Context) error {
	if a.memory == nil {
		return nil
	}
	return every(ctx, memoryInterval, func() error {
		a.remember()
		return nil
	})
}

func (a *agent) remember() {
	if err := a.memory.Write(func(b []byte) []byte { return a.sw.Remember(b, a.peerName) }); err != nil {
		a.log.Warn("the tables can't be kept for the next start", "error", err)
	}
}

// handOver writes the tables down while the workers still run: that takes 10 ms, in which frames would wait. What they
// learn meanwhile, the next process learns as well.
func (a *agent) handOver() error {
	if a.memory == nil {
		return nil
	}
	if a.ready {
		a.remember()
	}
	return a.memory.Close()
}

// listen returns a socket of the run directory: the one that the service manager has kept, where those are waiting who
// came meanwhile, or a new one.
func (a *agent) listen(name string) (net.Listener, error) {
	path := filepath.Join(a.cfg.RunDir, name)
	var l net.Listener
	adopted, err := a.store.Adopt(name, func(fds []int) (err error) {
		l, err = adoptListener(path, fds)
		return err
	})
	if err != nil {
		a.log.Warn("the kept socket is of no use; a new one is opened", "error", err)
	}
	if adopted {
		return l, nil
	}
	if l, err = listen(path); err != nil || a.store == nil {
		return l, err
	}
	unixl := l.(*net.UnixListener)
	unixl.SetUnlinkOnClose(false)
	raw, err := unixl.SyscallConn() // File would make the socket a blocking one
	if err == nil {
		err = raw.Control(func(fd uintptr) { a.keep(name, []int{int(fd)}) })
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// adoptListener makes a listener of a descriptor, if clients still find its socket at the path.
func adoptListener(path string, fds []int) (net.Listener, error) {
	if len(fds) != 1 {
		return nil, fmt.Errorf("%s: %d descriptors, want one", path, len(fds))
	}
	if st, err := os.Stat(path); err != nil || st.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("the socket %s is not there any more: %w", path, err)
	}
	dup, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0) // a file would close on an error what isn't its own
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(dup), path)
	l, err := net.FileListener(file) // a duplicate
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	if l.Addr().String() != path {
		return nil, errors.Join(fmt.Errorf("the kept socket is %s, want %s", l.Addr(), path), l.Close())
	}
	return l, unix.Close(fds[0])
}
