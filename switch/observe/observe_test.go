package observe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/attach"
	"tapyard/switch/control"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// rig is a running switch with a pod, a host and a tunnel, whose ports are in memory, and its admin API on
// a unix socket.
type rig struct {
	*Source
	t                 *testing.T
	pod, host, tunnel *porttest.Port
	socket            string
}

var (
	podAddr4, podAddr6 = netip.MustParseAddr("10.244.1.3"), netip.MustParseAddr("fd00:1::3")
	hostMAC            = wire.MAC{6, 0, 0, 0, 0, 1}
	peerMAC            = wire.MAC{2, 0, 0, 0, 0, 9}
)

func newRig(t *testing.T) *rig {
	t.Helper()
	sw, err := vswitch.New(vswitch.Config{Workers: 2, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	r := &rig{t: t, pod: porttest.New("default/web-0", port.CapsAll), host: porttest.New("tapyard0", 0), tunnel: porttest.New("vxlan", port.CapTSO4)}
	must(t, sw.AddNetwork(vswitch.Network{VNI: 1, RouterMAC: routerMAC, Gateways: []netip.Addr{netip.MustParseAddr("10.244.1.1")}}))
	ids := map[*porttest.Port]port.ID{}
	own := &vswitch.Station{MAC: podMAC, Addrs: []netip.Addr{podAddr4, podAddr6}}
	for p, cfg := range map[*porttest.Port]vswitch.PortConfig{r.pod: {Role: vswitch.RoleAccess, VNI: 1, Guard: own},
		r.host: {Role: vswitch.RoleHost, VNI: 1}, r.tunnel: {Role: vswitch.RoleTunnel}} {
		ids[p], err = sw.Attach(p, cfg)
		must(t, err)
	}
	must(t, sw.AddStation(1, ids[r.pod], podMAC, []netip.Addr{podAddr4, podAddr6}))
	must(t, sw.AddNetwork(vswitch.Network{VNI: 200, Stretched: true}))
	vteps := new(encap.VTEPTable)
	must(t, vteps.Set([]encap.Peer{{Name: "n2", Underlay: netip.MustParseAddr("192.168.1.12"), MAC: peerMAC}}))
	must(t, sw.UpdateRoutes(1, []vswitch.RouteChange{
		{Prefix: netip.MustParsePrefix("10.244.0.0/16"), Adjacency: &vswitch.Adjacency{Kind: vswitch.AdjNoRoute}},
		{Prefix: netip.MustParsePrefix("10.244.1.2/32"), Adjacency: &vswitch.Adjacency{Kind: vswitch.AdjLocal}},
		{Prefix: netip.MustParsePrefix("10.244.1.3/32"), Adjacency: &vswitch.Adjacency{Kind: vswitch.AdjForward, MTU: 1450, DstMAC: podMAC,
			SrcMAC: routerMAC, Dest: port.Dest{Port: ids[r.pod]}}},
		{Prefix: netip.MustParsePrefix("10.244.2.0/24"), Adjacency: &vswitch.Adjacency{Kind: vswitch.AdjForward, Tunnel: true, MTU: 1450,
			DstMAC: peerMAC, SrcMAC: routerMAC, Dest: port.Dest{Port: ids[r.tunnel], Peer: vteps.LookupName("n2").Index}}},
	}))
	node := control.Node{Name: "n1", VNI: 1, MTU: 1350, TunnelMTU: 1360, RouterMAC: routerMAC, Underlay: []netip.Addr{netip.MustParseAddr("192.168.1.11")},
		PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}
	state := control.State{Peers: []control.Peer{{Name: "n1"}, {Name: "n2", Underlay: []netip.Addr{netip.MustParseAddr("192.168.1.12")},
		PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}, MAC: peerMAC}}}
	r.Source = &Source{Switch: sw, State: func() control.State { return state }, VTEPs: vteps, Node: func() control.Node { return node }, HostMAC: hostMAC,
		Config: func() any { return map[string]any{"name": "n1", "mtu": 1450} },
		Attached: func() []attach.Attachment {
			return []attach.Attachment{{Name: "default/web-0", MAC: podMAC, MTU: 1400, VNI: 1,
				Addresses: []netip.Prefix{netip.PrefixFrom(podAddr4, 24), netip.PrefixFrom(podAddr6, 64)}}}
		}}
	sw.Start()
	t.Cleanup(func() {
		if l, err := sw.Stop(); err != nil || l.Check() != nil {
			t.Error(err, l.Check())
		}
	})
	r.serve()
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) serve() {
	r.socket = filepath.Join(r.t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", r.socket)
	must(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx, l) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
	})
}

// get asks the agent as any program would.
func get[T any](r *rig, view string) (v T) {
	r.t.Helper()
	must(r.t, Client{r.socket}.Get(r.t.Context(), view, &v))
	return v
}

// dropped waits until the agent shows as many drops, and returns them by port and reason.
func (r *rig) dropped(n int) map[string]Drop {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		drops := map[string]Drop{}
		for _, d := range get[[]Drop](r, "drops") {
			drops[d.Port+" "+d.Reason] = d
		}
		if len(drops) >= n {
			return drops
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%d kinds of drops, want %d: %v", len(drops), n, drops)
		}
	}
}

func plain(b []byte) porttest.Frame { return porttest.Frame{Bytes: b} }

// Every view, as JSON over the socket: the keys are a promise to scripts.
func TestViewsHaveTheirKeys(t *testing.T) {
	r := newRig(t)
	r.pod.Inject(plain(tcp(t)))
	r.dropped(1)
	traffic := "port id name kind vni addresses mac mtu worker workers rx tx drops kernel_drops last_error"
	for view, keys := range map[string]string{
		"ports":     strings.TrimPrefix(traffic, "port "),
		"fdb":       "vni mac port static",
		"neighbors": "vni address mac port",
		"routes":    "vni prefix kind via mtu port peer",
		"peers":     "name underlay podSubnets mac wire",
		"drops":     "port reason frames wire_frames explain example example_at example_bytes example_head",
		"offloads":  "port Checksum TSO4 TSO6 ECN USO engine engine_reason readwrite_ns io_uring_ns trains",
		"workers":   "id thread queues taken rx rx_share cpu_seconds busy",
		"config":    "name mtu",
		"ledger":    "rx originated copied split tx merged consumed drops in_flight pool_live wire",
	} {
		raw, err := Client{r.socket}.Raw(t.Context(), view)
		must(t, err)
		if !strings.HasPrefix(string(raw), "[") {
			raw = []byte("[" + string(raw) + "]")
		}
		var rows []map[string]any
		must(t, json.Unmarshal(raw, &rows))
		want := slices.Sorted(strings.FieldsSeq(keys))
		if len(rows) == 0 {
			t.Errorf("%s: nothing", view)
		}
		for _, row := range rows {
			if got := slices.Sorted(maps.Keys(row)); view != "fdb" && !slices.Equal(got, want) || view == "fdb" && !subset(want, got) {
				t.Errorf("%s: keys %v, want %v", view, got, want)
			}
		}
	}
}

func subset(of, all []string) bool {
	return !slices.ContainsFunc(of, func(k string) bool { return !slices.Contains(all, k) })
}

func TestDropsTellWhoseFrameItWas(t *testing.T) {
	r := newRig(t)
	before := time.Now()
	vlan := packet(t, layers.EthernetTypeDot1Q, &layers.Dot1Q{VLANIdentifier: 100, Type: layers.EthernetTypeARP}, gopacket.Payload(arp(t, 1, "10.244.1.3", "10.244.1.4")[14:]))
	lie := udp6(t, v6(layers.IPProtocolUDP, "fd00:1::9", "fd00:1::4"))
	r.pod.Inject(plain(tcp(t)), plain(tcp(t)), plain(tcp(t)), plain(vlan), plain(lie))
	away := porttest.Frame{Bytes: tcp(t)}
	away.Meta.VNI = 77
	r.tunnel.Inject(away)
	drops := r.dropped(4)
	for key, want := range map[string]Drop{
		"default/web-0 no_route":    {Frames: 3, Example: "TCP SYN 10.244.1.3:40112 > 10.244.9.9:80, 74 bytes" + macs, ExampleBytes: 74},
		"default/web-0 vlan_tagged": {Frames: 1, Example: "VLAN 100, inside: ARP who-has 10.244.1.4 tell 10.244.1.3 (0a:00:00:00:00:03), 64 bytes" + macs, ExampleBytes: 64},
		"default/web-0 spoofed_ip": {Frames: 1, Example: "UDP [fd00:1::9]:4000 > [fd00:1::4]:53, 70 bytes" + macs +
			"; it claims fd00:1::9, but this pod is 10.244.1.3 and fd00:1::3 at 0a:00:00:00:00:03", ExampleBytes: 70},
		"vxlan unknown_vni": {Frames: 1, Example: "VNI 77: TCP SYN 10.244.1.3:40112 > 10.244.9.9:80, 74 bytes" + macs, ExampleBytes: 74},
	} {
		got := drops[key]
		for deadline := time.Now().Add(20 * time.Second); got.Frames < want.Frames && time.Now().Before(deadline); {
			got = r.dropped(4)[key]
		}
		if got.Frames != want.Frames || got.Example != want.Example || got.ExampleBytes != want.ExampleBytes || got.Explain == "" {
			t.Errorf("%s: %+v, want %+v", key, got, want)
		}
		if got.ExampleAt.Before(before) || got.ExampleAt.After(time.Now()) {
			t.Errorf("%s: dropped at %v, not since %v", key, got.ExampleAt, before)
		}
		if head := fmt.Sprintf("%x", tcp(t)); got.ExampleBytes == 74 && got.ExampleHead != head {
			t.Errorf("%s: head %s, want %s", key, got.ExampleHead, head)
		}
	}
}

// A station behind a peer of a tunnel.
func TestFDBShowsPeerAndAge(t *testing.T) {
	r := newRig(t)
	before := time.Now()
	roamer := porttest.Frame{Bytes: append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 0x88, 0xb5}, make([]byte, 46)...)}
	roamer.Meta.VNI, roamer.Meta.Peer = 200, r.VTEPs.LookupName("n2").Index
	r.tunnel.Inject(roamer)
	var fdb []FDBEntry
	for deadline := time.Now().Add(20 * time.Second); len(fdb) < 2 && time.Now().Before(deadline); {
		fdb = get[[]FDBEntry](r, "fdb")
	}
	if len(fdb) != 2 {
		t.Fatalf("fdb %+v, want the pod and the station", fdb)
	}
	pod, station := fdb[0], fdb[1]
	if !pod.Static || !pod.LastSeen.IsZero() || pod.Peer != "" {
		t.Errorf("the pod: %+v", pod)
	}
	if station.Port != "vxlan" || station.Peer != "n2" || station.Static || station.Moves != 0 || !station.FrozenUntil.IsZero() ||
		station.LastSeen.Before(before.Add(-2*time.Second)) || station.LastSeen.After(time.Now()) {
		t.Errorf("the station: %+v", station)
	}
}

func TestViewsShowWhatIsThere(t *testing.T) {
	r := newRig(t)
	across := packet(t, layers.EthernetTypeIPv4, v4(layers.IPProtocolUDP, "10.244.1.3", "10.244.2.9"), &layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload("hello"))
	r.pod.Inject(plain(across))
	if _, err := r.tunnel.WaitSent(1, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	ports := map[string]Port{}
	for _, p := range get[[]Port](r, "ports") {
		ports[p.Name] = p
	}
	pod := ports["default/web-0"]
	if len(ports) != 3 || pod.Rx != (Traffic{1, 1, uint64(len(across))}) || pod.MTU != 1400 || pod.MAC != podMAC.String() || !slices.Equal(pod.Addresses, []netip.Addr{podAddr4, podAddr6}) {
		t.Errorf("ports %+v", ports)
	}
	if host, tunnel := ports["tapyard0"].MTU, ports["vxlan"].MTU; host != 1350 || tunnel != 1360 {
		t.Errorf("MTUs %d of the host and %d of the tunnel, want those of the node", host, tunnel)
	}
	if tx := ports["vxlan"].Tx; tx != (Traffic{1, 1, uint64(len(across))}) {
		t.Errorf("the tunnel sent %+v", tx)
	}
	var routes []string
	for _, route := range get[[]Route](r, "routes") {
		routes = append(routes, fmt.Sprintf("%+v", route))
	}
	slices.Sort(routes)
	want := []string{
		"{VNI:1 Prefix:10.244.0.0/16 Kind:no_route Via: MTU:0 Port: Peer:}",
		"{VNI:1 Prefix:10.244.1.2/32 Kind:local Via: MTU:0 Port: Peer:}",
		"{VNI:1 Prefix:10.244.1.3/32 Kind:forward Via:0a:00:00:00:00:03 MTU:1450 Port:default/web-0 Peer:}",
		"{VNI:1 Prefix:10.244.2.0/24 Kind:forward Via:02:00:00:00:00:09 MTU:1450 Port:vxlan Peer:n2}",
	}
	if !slices.Equal(routes, want) {
		t.Errorf("routes\n%s\nwant\n%s", strings.Join(routes, "\n"), strings.Join(want, "\n"))
	}
	if fdb := get[[]FDBEntry](r, "fdb"); len(fdb) != 1 || fdb[0].MAC != podMAC || fdb[0].Port != "default/web-0" || !fdb[0].Static {
		t.Errorf("fdb %+v", fdb)
	}
	if n := get[[]Neighbor](r, "neighbors"); len(n) != 2 || n[0].MAC != podMAC || n[0].Port != "default/web-0" {
		t.Errorf("neighbors %+v", n)
	}
	if p := get[[]Peer](r, "peers"); len(p) != 1 || p[0].Name != "n2" || p[0].MAC != peerMAC || p[0].Wire != "vxlan" {
		t.Errorf("peers %+v, want n2 by VXLAN, without this node", p)
	}
	for _, o := range get[[]Offload](r, "offloads") {
		if all := o.Checksum && o.TSO4 && o.TSO6 && o.ECN && o.USO; all != (o.Port == "default/web-0") || o.TSO4 != (o.Port != "tapyard0") {
			t.Errorf("offloads %+v", o)
		}
	}
	for _, w := range get[[]Worker](r, "workers") {
		share := 0.0
		if w.ID == pod.Worker {
			share = 1
		}
		if w.RxShare != share || w.Rx.Bytes != uint64(share)*uint64(len(across)) || w.Queues == 0 || w.Thread == 0 || w.Taken != 0 {
			t.Errorf("worker %+v, while the pod's queue is worker %d's", w, pod.Worker)
		}
	}
	if l := get[Ledger](r, "ledger"); l.Rx != 1 || l.Tx != 1+l.Originated || l.InFlight != 0 || l.Wire.Rx != 1 {
		t.Errorf("ledger %+v", l)
	}
}

// unsteered is a pod that is to have several queues on a kernel without eBPF.
type unsteered struct{ *porttest.Port }

func (unsteered) Unsteered() error { return errors.New("the kernel refuses eBPF") }

func TestOneQueueSaysWhy(t *testing.T) {
	r := newRig(t)
	_, err := r.Switch.Attach(unsteered{porttest.New("default/db-0", 0)}, vswitch.PortConfig{Role: vswitch.RoleAccess, VNI: 1})
	must(t, err)
	for _, o := range get[[]Offload](r, "offloads") {
		if (o.OneQueue == "the kernel refuses eBPF") != (o.Port == "default/db-0") {
			t.Errorf("%+v", o)
		}
	}
}

// What an operator reads when the agent isn't there or isn't the one of this program.
func TestClientSaysWhyNobodyAnswers(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	must(t, err)
	l.SetUnlinkOnClose(false) // as kill -9 leaves it
	l.Close()
	broken := filepath.Join(dir, "broken.sock")
	l, err = net.ListenUnix("unix", &net.UnixAddr{Name: broken})
	must(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "garbage") {
			_, _ = io.WriteString(w, "<html>")
			return
		}
		http.Error(w, "out of order", http.StatusInternalServerError)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	missing := filepath.Join(dir, "missing.sock")
	start := "('systemctl start tapyard', or 'tapyard agent'), or name another by --socket or --node"
	r := newRig(t)
	for _, c := range []struct{ socket, view, want string }{
		{missing, "ports", "no agent: the socket " + missing + " is not there; start one " + start},
		{dead, "ports", "no agent: nobody listens on " + dead + ", whose agent has ended; start it " + start},
		{r.socket, "future", "the agent on " + r.socket + ` doesn't know "future": it is of another version than this program; restart it`},
		{broken, "ports", "agent on " + broken + ": ports: 500 Internal Server Error: out of order"},
		{broken, "garbage", "answer of " + broken + " to garbage: invalid character '<' looking for beginning of value"},
	} {
		if err := (Client{c.socket}).Get(t.Context(), c.view, new(any)); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v\nwant\n%s", c.view, err, c.want)
		}
	}
	if b, err := (Client{r.socket}).Raw(t.Context(), "ready"); err != nil || string(b) != "ready\n" {
		t.Errorf("ready: %q, %v", b, err)
	}
}
