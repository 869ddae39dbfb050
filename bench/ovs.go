package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const ovsSchema = "/usr/share/openvswitch/vswitch.ovsschema" // Debian's

// openVSwitch is one node's Open vSwitch with the userspace datapath: the daemons of its own, all files in dir. It reads and
// writes veths through AF_PACKET, its main thread doing all work (no PMD threads: those poll without end).
type openVSwitch struct {
	netns         string
	cpus          unix.CPUSet
	dir           string
	db, forwarder *process
}

// needOVS says so where Open vSwitch is not installed.
func needOVS() error {
	for _, program := range []string{"ovsdb-tool", "ovsdb-server", "ovs-vsctl", "ovs-vswitchd"} {
		if _, err := exec.LookPath(program); err != nil {
			return &absentError{peer: "ovs", why: "there is no " + program + " in PATH (Debian: apt install openvswitch-switch)"}
		}
	}
	return nil
}

// start starts the daemons in the namespace.
func (o *openVSwitch) start(ctx context.Context) (err error) {
	if err := o.run(ctx, "ovsdb-tool", "create", o.path("conf.db"), ovsSchema); err != nil {
		return err
	}
	if o.db, err = o.daemon(ctx, "ovsdb-server", "db.sock", "--remote=punix:"+o.path("db.sock"), o.path("conf.db")); err != nil {
		return err
	}
	if err := o.vsctl(ctx, "--no-wait", "init"); err != nil {
		return err
	}
	o.forwarder, err = o.daemon(ctx, "ovs-vswitchd", "ovs-vswitchd.pid", "unix:"+o.path("db.sock"))
	return err
}

func (o *openVSwitch) path(file string) string { return filepath.Join(o.dir, file) }

// command keeps every file of the program in dir.
func (o *openVSwitch) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+o.dir, "OVS_LOGDIR="+o.dir, "OVS_DBDIR="+o.dir, "OVS_SYSCONFDIR="+o.dir)
	return cmd
}

func (o *openVSwitch) run(ctx context.Context, program string, args ...string) error {
	p, err := startProcess(program, o.command(program, args...), o.netns, o.cpus)
	if err != nil {
		return err
	}
	if err := p.wait(patience); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return ctx.Err()
}

// daemon starts a program that is ready when it has made a file.
func (o *openVSwitch) daemon(ctx context.Context, program, file string, args ...string) (*process, error) {
	args = append([]string{"--pidfile", "--no-chdir", "-vconsole:warn"}, args...)
	p, err := startProcess(program, o.command(program, args...), o.netns, o.cpus)
	if err != nil {
		return nil, err
	}
	return p, p.awaitReady(ctx, func() bool {
		_, err := os.Stat(o.path(file))
		return err == nil
	})
}

func (o *openVSwitch) vsctl(ctx context.Context, args ...string) error {
	return o.run(ctx, "ovs-vsctl", append([]string{"--timeout=20", "--db=unix:" + o.path("db.sock")}, args...)...)
}

// addBridge makes a bridge of the userspace datapath with ports.
func (o *openVSwitch) addBridge(ctx context.Context, name string, ports ...string) error {
	args := []string{"add-br", name, "--", "set", "bridge", name, "datapath_type=netdev"}
	for _, p := range ports {
		args = append(args, "--", "add-port", name, p)
	}
	return o.vsctl(ctx, args...)
}

// addPod joins a pod. Its offloads are off: Open vSwitch passes frames on as they are, and without its experimental
// userspace TSO, which tunnels don't take, neither segments them nor completes their sums.
func (o *openVSwitch) addPod(p *pod, device string) error {
	err := inNetns(o.netns, func() error { return addVethPod(p, device) })
	if err != nil {
		return err
	}
	return inNetns(p.netns, func() error { return switchOffloadsOff(podDevice) })
}

// drops are those at the sockets through which it reads its devices.
func (o *openVSwitch) drops() (sum uint64, err error) {
	err = inNetns(o.netns, func() error {
		sum, err = packetSocketDrops()
		return err
	})
	return sum, err
}

// stop ends the daemons; it tolerates one that isn't there.
func (o *openVSwitch) stop() {
	for _, p := range []*process{o.forwarder, o.db} {
		if p != nil {
			p.kill() // its configuration and its devices go with the folder and the namespace
		}
	}
}

// packetSocketDrops adds up what AF_PACKET sockets of the current namespace have dropped for want of room.
func packetSocketDrops() (sum uint64, err error) {
	const (
		showMeminfo  = 1 << 4 // PACKET_SHOW_MEMINFO
		attrMeminfo  = 6      // PACKET_DIAG_MEMINFO
		headerLen    = 16     // struct packet_diag_msg
		meminfoDrops = 8      // SK_MEMINFO_DROPS
	)
	request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	body := make([]byte, 20) // struct packet_diag_req
	body[0] = unix.AF_PACKET
	binary.NativeEndian.PutUint32(body[8:], showMeminfo)
	request.AddRawData(body)
	answers, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil {
		return 0, fmt.Errorf("list AF_PACKET sockets: %w", err)
	}
	for _, answer := range answers {
		if len(answer) < headerLen {
			continue
		}
		attrs, err := nl.ParseRouteAttr(answer[headerLen:])
		if err != nil {
			return 0, fmt.Errorf("read an AF_PACKET socket: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == attrMeminfo && len(a.Value) >= 4*(meminfoDrops+1) {
				sum += uint64(binary.NativeEndian.Uint32(a.Value[4*meminfoDrops:]))
			}
		}
	}
	return sum, nil
}

// ovsNode is Open vSwitch between two pods on one node.
type ovsNode struct {
	openVSwitch
	from, to pod
}

func startOVS(ctx context.Context, s *session) (subject, error) {
	if err := needOVS(); err != nil {
		return nil, err
	}
	dir, err := s.folder()
	if err != nil {
		return nil, err
	}
	o := &ovsNode{openVSwitch: openVSwitch{netns: benchPrefix + "ovs", cpus: s.forward, dir: dir}}
	o.from, o.to = podPair(s, "ovs")
	if err := o.start(ctx); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *ovsNode) start(ctx context.Context) error {
	if err := makeNetns(o.netns); err != nil {
		return err
	}
	if err := o.openVSwitch.start(ctx); err != nil {
		return err
	}
	if err := errors.Join(o.addPod(&o.from, "pod-a"), o.addPod(&o.to, "pod-b")); err != nil {
		return err
	}
	if err := o.addBridge(ctx, "br-int", "pod-a", "pod-b"); err != nil {
		return err
	}
	return acquaint(o.from, o.to)
}

func (o *ovsNode) name() string                          { return "ovs" }
func (o *ovsNode) pods() (from, to pod)                  { return o.from, o.to }
func (o *ovsNode) pids() []int                           { return []int{o.forwarder.pid()} }
func (o *ovsNode) drops(context.Context) (uint64, error) { return o.openVSwitch.drops() }

func (o *ovsNode) close() error {
	o.stop()
	return deleteNetns(o.from.netns, o.to.netns, o.netns)
}

// ovsNodes are two nodes with Open vSwitch, joined by its own vxlan port.
type ovsNodes struct {
	nodes
	each [2]openVSwitch
}

// startOVSNodes is the starter of a pair of nodes whose underlay has offloads or not.
func startOVSNodes(offloads bool) starter {
	return func(ctx context.Context, s *session) (subject, error) {
		if err := needOVS(); err != nil {
			return nil, err
		}
		o := &ovsNodes{nodes: newNodes(s, "ovs")}
		if err := o.start(ctx, s, offloads); err != nil {
			return nil, errors.Join(err, o.close())
		}
		return o, nil
	}
}

func (o *ovsNodes) start(ctx context.Context, s *session, offloads bool) error {
	if err := o.join(offloads); err != nil {
		return err
	}
	for i, p := range []*pod{&o.from, &o.to} {
		dir, err := s.folder()
		if err != nil {
			return err
		}
		o.each[i] = openVSwitch{netns: o.netns[i], cpus: o.cpus[i], dir: dir}
		if err := o.each[i].startNode(ctx, p, i); err != nil {
			return fmt.Errorf("set up Open vSwitch in %s: %w", o.netns[i], err)
		}
	}
	return acquaint(o.from, o.to)
}

// startNode makes the two bridges that tunnels of the userspace datapath need (Open vSwitch's "Connecting VMs Using
// Tunnels (Userspace)"): br-phy has the underlay device, and its address, since the datapath reads the device
// itself; br-int has the pod and the tunnel.
func (o *openVSwitch) startNode(ctx context.Context, p *pod, i int) error {
	if err := o.start(ctx); err != nil {
		return err
	}
	if err := o.addPod(p, "pod"); err != nil {
		return err
	}
	if err := o.addBridge(ctx, "br-phy", underDevice); err != nil {
		return err
	}
	if err := o.addBridge(ctx, "br-int", "pod"); err != nil {
		return err
	}
	err := o.vsctl(ctx, "add-port", "br-int", "vxlan", "--", "set", "interface", "vxlan", "type=vxlan",
		fmt.Sprintf("options:key=%d", overlayVNI), "options:remote_ip="+underAddrs[1-i])
	if err != nil {
		return err
	}
	return inNetns(o.netns, func() error { return moveUnderlay(underAddrs[i], "br-phy") })
}

// moveUnderlay moves a node's address from the underlay device to a bridge that has it as a port.
func moveUnderlay(addr, bridge string) error {
	under, err := netlink.LinkByName(underDevice)
	if err != nil {
		return err
	}
	to, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrDel(under, underAddr(addr)), netlink.AddrAdd(to, underAddr(addr)), raise(bridge), raise("br-int"))
}

func (o *ovsNodes) pids() []int { return []int{o.each[0].forwarder.pid(), o.each[1].forwarder.pid()} }

// drops are those at the sockets of both, and at the devices.
func (o *ovsNodes) drops(context.Context) (uint64, error) {
	first, err := o.each[0].drops()
	if err != nil {
		return 0, err
	}
	second, err := o.each[1].drops()
	if err != nil {
		return 0, err
	}
	devices, err := o.deviceDrops()
	return first + second + devices, err
}

func (o *ovsNodes) close() error {
	o.each[0].stop()
	o.each[1].stop()
	return o.nodes.close()
}
