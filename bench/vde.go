package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// vde is vde2's switch with two TAPs, which it makes itself: one frame to a system call, and no offloads.
type vde struct {
	netns    string
	from, to pod
	proc     *process
	console  io.Closer // it ends when its console does
}

func startVDE(ctx context.Context, s *session) (subject, error) {
	if _, err := exec.LookPath("vde_switch"); err != nil {
		return nil, &absentError{peer: "vde2", why: "there is no vde_switch in PATH (Debian: apt install vde2)"}
	}
	dir, err := s.folder()
	if err != nil {
		return nil, err
	}
	v := &vde{netns: benchPrefix + "vde"}
	v.from, v.to = podPair(s, "vde")
	if err := v.start(ctx, s, dir); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

func (v *vde) start(ctx context.Context, s *session, dir string) (err error) {
	if err := makeNetns(v.netns); err != nil {
		return err
	}
	cmd := exec.Command("vde_switch", "--sock", filepath.Join(dir, "vde"), "--tap", "pod-a", "--tap", "pod-b")
	if v.console, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if v.proc, err = startProcess("vde_switch", cmd, v.netns, s.forward); err != nil {
		return err
	}
	ready := func() bool { return inNetns(v.netns, func() error { return raise("pod-b") }) == nil }
	if err := v.proc.awaitReady(ctx, ready); err != nil {
		return err
	}
	for device, p := range map[string]*pod{"pod-a": &v.from, "pod-b": &v.to} {
		if err := makeNetns(p.netns); err != nil {
			return err
		}
		if err := inNetns(v.netns, func() error { return moveDevice(device, p.netns, podDevice) }); err != nil {
			return err
		}
		if err := p.setUp(); err != nil {
			return err
		}
	}
	return acquaint(v.from, v.to)
}

// moveDevice moves a device of the current namespace into another, and renames it.
func moveDevice(device, otherNetns, name string) error {
	other, err := netns.GetFromName(otherNetns)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", otherNetns, err)
	}
	defer other.Close()
	link, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.LinkSetDown(link) // or it can't be renamed
	}
	if err == nil {
		err = netlink.LinkSetName(link, name)
	}
	if err == nil {
		err = netlink.LinkSetNsFd(link, int(other))
	}
	if err != nil {
		return fmt.Errorf("move %s into %s as %s: %w", device, otherNetns, name, err)
	}
	return nil
}

func (v *vde) name() string                          { return "vde2" }
func (v *vde) pods() (from, to pod)                  { return v.from, v.to }
func (v *vde) pids() []int                           { return []int{v.proc.pid()} }
func (v *vde) drops(context.Context) (uint64, error) { return 0, nil } // it counts none; a loss shows in the balance

func (v *vde) close() error {
	if v.proc != nil {
		v.proc.kill()
		v.console.Close()
	}
	return deleteNetns(v.from.netns, v.to.netns, v.netns)
}
