package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"

	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/attach"
	"tapyard/switch/control"
	"tapyard/switch/control/static"
	"tapyard/switch/handover"
	"tapyard/switch/port"
)

func agentCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the switch of this node",
		Long: `Run the switch of this node until SIGTERM. It needs root (CAP_NET_ADMIN and CAP_NET_RAW), a
configuration (` + defaultConfig + `; every key but networks is also a flag) and, in mode routed, a
peers file:

  # ` + defaultConfig + `: keys in camel case, so --run-dir is runDir; --pod-subnet is podSubnets
  name: n1
  podSubnets: [10.244.1.0/24, "fd00:10:244:1::/64"]
  underlay: [192.168.1.11]
  # All that follows may be left out; these are the defaults, except for networks, of which there are none.
  io: auto            # or readwrite, io_uring: how TAPs are read and written; auto has the faster one of a trial
  podQueues: 1        # of a pod's TAP; as many workers share the flows of a pod ("queues": 2 in a conflist: of its pods)
  portType: tap       # or veth: a pair per pod, whose host end is read by AF_PACKET; pods that are there keep theirs
  sourceGuard: true   # a pod may send from its own MAC and addresses only
  masquerade: true    # what pods send beyond the cluster leaves with the node's address (nftables)
  ageing: 300         # seconds after which a silent MAC is forgotten; 0: never
  bumLimit: 1000      # broadcast, unknown-destination and multicast frames a second and port; 0: no limit
  cniConfDir: ""      # where 10-tapyard.conflist appears when the agent is ready; 'tapyard install' sets /etc/cni/net.d
  conflist: /etc/tapyard/10-tapyard.conflist  # what appears there; if that is absent, a network with the defaults
  flows: false        # track conversations, which 'tapyard show flows' lists; costs some 15 ns a frame
  wire: auto          # super-frames whole, small frames in bundles, to peers that take them (encap/README.md); plain: VXLAN only
  networks:           # further L2 segments, which "network": "blue" in a conflist selects
  - name: blue
    vni: 200
    l2: stretched     # one segment with the peers that have the same VNI; or local, of this node
    subnets: [10.9.0.0/24]
    ranges: [10.9.0.64/26]  # of subnets: what this node gives out; each node its own
  - {name: lan, vni: 201, l2: local, uplink: eth1}  # pods on the LAN behind eth1, with addresses of their own

  # /etc/tapyard/peers.yaml
  clusterCIDRs: [10.244.0.0/16, "fd00:10:244::/48"]
  peers:
  - {name: n2, underlay: 192.168.1.12, podSubnets: [10.244.2.0/24, "fd00:10:244:2::/64"]}

An uplink is an interface that the host doesn't use: without addresses, and while the agent runs the host
sees nothing of what arrives there. In mode l2 the node's one segment has it: 'mode: l2' and 'uplink: eth1'.

The peers file is read again when it changes; a wrong one is refused as a whole and the old state keeps
forwarding. 'tapyard reload', or SIGHUP, reads the configuration again. Pods stay attached when the agent stops; the next start finds them.`,
		Args: cobra.NoArgs,
	}
	flags := defaults()
	flags.Name = "the machine's hostname" // which is the same on no two machines, unlike the manual
	flags.bind(cmd)                       // for --help and for refusing what isn't one; configFrom reads them over the file
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := configFrom(os.Args[2:])
		if err != nil {
			return err
		}
		if err := c.check(); err != nil {
			return err
		}
		return runAgent(cmd.Context(), &c, func() (config, error) { return configFrom(os.Args[2:]) })
	}
	return cmd
}

// agent is a node's switch with everything around it.
type agent struct {
	cfg        *config
	log        *slog.Logger
	level      *slog.LevelVar
	reread     func() (config, error) // the configuration, from the same file and flags
	reloading  sync.Mutex             // guards what reload may change of cfg
	again      chan os.Signal         // read the peers file again
	node       control.Node
	sw         *vswitch.Switch
	host       *attach.Host
	uplinks    []*port.Packet
	vteps      *encap.VTEPTable
	proven     proven
	store      *handover.Store  // of descriptors, nil without a service manager that has one
	memory     *handover.Memory // of tables, nil without store
	without    offloads
	rings      *port.Rings // nil with the engine readwrite
	engine     port.EngineChoice
	steering   *port.Steering // of pods with several queues
	controller *control.Controller
	pods       *attach.Manager
	peers      *static.File
	underlay   attach.Underlay
	mtu        atomic.Int64   // of pods, now
	egress     sync.Mutex     // one change of the masquerading at a time
	hup        chan os.Signal // reload
	settled    bool           // what start does to the node and its pods is done
	ready      bool
	closers    []func() error
}

func runAgent(ctx context.Context, c *config, reread func() (config, error)) (err error) {
	a := &agent{cfg: c, reread: reread, hup: make(chan os.Signal, 1), again: make(chan os.Signal, 1), level: new(slog.LevelVar)}
	a.level.Set(c.LogLevel)
	a.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: a.level})).With("node", c.Name)
	signal.Notify(a.hup, syscall.SIGHUP) // from here on: its default is to end the process
	defer signal.Stop(a.hup)
	// Workers run on locked threads and may be in the middle of a burst; the slow worker and the sockets
	// must not wait for them.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), c.workers()+2))
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.start(ctx); err != nil {
		return err
	}
	return a.serve(ctx)
}

// setRoutes brings the host's routes to the state that the switch has already.
func (a *agent) setRoutes(s control.State) error {
	a.egress.Lock()
	defer a.egress.Unlock()
	return a.host.SetRoutes(slices.Concat(s.ClusterCIDRs, a.cfg.PodSubnets, a.foreign()))
}

func (a *agent) openPods() (err error) {
	a.pods, err = attach.Open(attach.Config{
		StateDir: a.cfg.StateDir, Subnets: a.cfg.PodSubnets, VNI: a.cfg.VNI,
		MTU: func() int { return int(a.mtu.Load()) }, L2: a.cfg.Mode == modeL2, PortType: a.cfg.PortType, Networks: a.networks(),
		Without: a.without.taps, Rings: a.rings, Queues: a.cfg.PodQueues, Steering: a.steering, Store: a.store, Log: a.log,
		Publish: a.publish, Withdraw: a.withdraw, MapPorts: a.setPorts, CutOff: a.cutOff,
		Probe: func(ctx context.Context, at attach.Attachment, addrs []netip.Addr) error {
			return a.controller.ProbePod(ctx, at, addrs)
		},
	})
	return err
}

func (a *agent) publish(at attach.Attachment, p port.Port) error {
	if err := a.controller.AddPod(at, p); err != nil || len(a.controller.ForeignOf(&at)) == 0 {
		return err
	}
	if err := a.followForeign(); err != nil {
		return errors.Join(err, a.controller.RemovePod(context.Background(), at))
	}
	a.log.Warn("a pod has an address outside of the pod subnets: only this node reaches it", "port", at.Name, "addresses", at.Addrs())
	return nil
}

func (a *agent) withdraw(ctx context.Context, at attach.Attachment) error {
	err := a.controller.RemovePod(ctx, at)
	if err == nil && len(a.controller.ForeignOf(&at)) > 0 {
		err = a.followForeign()
	}
	return err
}

// foreign returns what pods have beside the pod subnets, as prefixes.
func (a *agent) foreign() (single []netip.Prefix) {
	for _, addr := range a.controller.Foreign() {
		single = append(single, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return single
}

// followForeign brings the host's routes and the masquerading to the pods' addresses beside the pod subnets, from when
// all that are there are known.
func (a *agent) followForeign() error {
	if a.host == nil || !a.settled {
		return nil
	}
	err := a.setRoutes(a.controller.State())
	if err == nil {
		err = a.setEgress()
	}
	return err
}

// localMTU is the MTU of pods that no tunnel carries: the uplink's, or Ethernet's (IEEE 802.3).
func localMTU(uplink string) int {
	const ethernet = 1500
	if link, err := net.InterfaceByName(uplink); err == nil {
		return link.MTU
	}
	return ethernet // no uplink, or none that is there, which join will say
}

func (a *agent) networks() (networks []attach.Network) {
	for _, n := range a.cfg.Networks {
		own := attach.Network{Name: n.Name, VNI: n.VNI, Subnets: n.Subnets, Ranges: n.Ranges}
		if n.L2 == l2Local {
			own.MTU = localMTU(n.Uplink)
		}
		networks = append(networks, own)
	}
	return networks
}

// stopSwitch ends the workers and holds the ledger to its word.
func (a *agent) stopSwitch() error {
	l, err := a.sw.Stop()
	if err != nil {
		return err
	}
	if err := l.Check(); err != nil {
		return err
	}
	if !a.ready {
		return nil // the reason why is on its way
	}
	a.log.Info("stopped; the ledger balances", "rx", l.Rx.Frames, "tx", l.Tx.Frames, "drops", l.Drops.Frames)
	return nil
}

// close closes in the order of start: the switch, which stops touching its ports, then the ports; and last what
// keeps another agent off.
func (a *agent) close() error {
	var errs []error
	for _, f := range a.closers {
		errs = append(errs, f())
	}
	if a.pods != nil {
		errs = append(errs, a.pods.Close())
	}
	if a.steering != nil {
		errs = append(errs, a.steering.Close())
	}
	if a.rings != nil {
		errs = append(errs, a.rings.Close())
	}
	return errors.Join(errs...)
}
