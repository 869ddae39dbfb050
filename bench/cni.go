package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/spf13/cobra"
)

const (
	// cniPods are attached and detached in a run: one after the other, or all at once.
	cniPods = 32
	// cniGain is by how much the switch has to be faster than bridge and host-local together.
	cniGain = 2
	// cniCheck bounds a CHECK, cniSize the plugin's file: a runtime starts it once per verb.
	cniCheck = 5 * time.Millisecond
	cniSize  = 4 << 20

	cniBridgeName = "bridge"
)

// The subnets have room for all pods of a run; those of our node belong to the cluster's.
var cniFamilies = []struct {
	name    string
	subnets []string
}{
	{"ipv4", []string{podPrefix}},
	{"dual", []string{podPrefix, "fd00:10:244:1::/64"}},
}

var cniMetrics = []metric{{long: "add_and_del", unit: "ms", smaller: true}}

// attacher is a node whose plugins attach pods, one run of which is an ADD and a DEL of each of cniPods.
type attacher struct {
	subject // of which the name only is asked for
	called  string
	netns   string // that the plugins run in
	cni     *libcni.CNIConfig
	conf    *libcni.NetworkConfigList
	end     func() error
}

func (a *attacher) name() string { return a.called }
func (a *attacher) close() error { return a.end() }

func cniCommand() *cobra.Command {
	cfg := Config{Peers: []string{cniBridgeName}}
	cmd := benchmarkCommand("cni", "How long ADD and DEL of the plugin take, beside bridge and host-local of containernetworking",
		func(ctx context.Context, progress io.Writer) (*Report, error) {
			cfg.Progress = progress
			return CNI(ctx, cfg)
		})
	cmd.Flags().IntVar(&cfg.Repeat, "repeat", floorPairs, fmt.Sprintf("rounds, in each of which both attach and detach %d pods", cniPods))
	return cmd
}

// CNI measures the wall time of an ADD and a DEL together, of IPv4 pods and of dual-stack ones, one at a time and
// cniPods at once, beside the reference plugins bridge and host-local; then that of a CHECK. Our record of a pod is on
// the disk before ADD answers, as in the field; host-local's file is written, not synced.
func CNI(ctx context.Context, cfg Config) (*Report, error) {
	return runBenchmark(ctx, cfg, func(ctx context.Context, s *session) (rows []Row, err error) {
		for _, f := range cniFamilies {
			r, err := s.attaching(ctx, f.name, f.subnets)
			if err != nil {
				return nil, err
			}
			rows = append(rows, r...)
		}
		return append(rows, s.pluginSize()), nil
	})
}

func (s *session) attaching(ctx context.Context, family string, subnets []string) (rows []Row, err error) {
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(ctx, []starter{startAttaching(subnets), startReference(subnets)}); err != nil {
		return nil, err
	}
	var pods [cniPods]string
	for i := range pods {
		pods[i] = fmt.Sprintf("%scni-%d", benchPrefix, i)
		if err := makeNetns(pods[i]); err != nil {
			return nil, err
		}
	}
	defer func() { err = errors.Join(err, deleteNetns(pods[:]...)) }()
	for _, way := range []struct {
		name string
		at   int
	}{{"one", 1}, {fmt.Sprintf("by%d", cniPods), cniPods}} {
		base := "cni." + family + "." + way.name
		r, err := s.interleave(ctx, base, cniMetrics, func(ctx context.Context, sub subject) (values, error) {
			took, err := sub.(*attacher).each(ctx, pods[:], way.at, func(ctx context.Context, a *attacher, rt *libcni.RuntimeConf) error {
				return a.attached(ctx, rt, func() error { return nil })
			})
			return values{milliseconds(median(took))}, err
		})
		if err != nil {
			return nil, err
		}
		for i := range r {
			if r[i].Peer != "" {
				r[i].Floor, r[i].Holds = cniGain, new(r[i].Pairs >= floorPairs && r[i].Low >= cniGain)
			}
		}
		rows = append(rows, r...)
	}
	check, err := s.checking(ctx, family, pods[:])
	return append(rows, check), err
}

// checking measures a CHECK of the switch's, as CRI-O asks for after every ADD.
func (s *session) checking(ctx context.Context, family string, pods []string) (Row, error) {
	ours := s.subjects[0].(*attacher)
	var took []time.Duration
	for range s.cfg.Repeat {
		_, err := ours.each(ctx, pods, 1, func(ctx context.Context, a *attacher, rt *libcni.RuntimeConf) error {
			return a.attached(ctx, rt, func() error {
				begun := time.Now()
				defer func() { took = append(took, time.Since(begun)) }()
				return a.cni.CheckNetworkList(ctx, a.conf, rt)
			})
		})
		if err != nil {
			return Row{}, err
		}
	}
	slices.Sort(took)
	at := func(p float64) float64 { return milliseconds(percentile(took, p)) }
	return Row{Name: "cni." + family + ".check", Unit: "ms", Value: at(50), Low: at(25), High: at(75), Holds: new(at(50) <= milliseconds(cniCheck))}, nil
}

// each calls do for each pod in the plugins' namespace, for so many at once, and returns how long the calls took.
func (a *attacher) each(ctx context.Context, pods []string, at int, do func(context.Context, *attacher, *libcni.RuntimeConf) error) ([]time.Duration, error) {
	took, errs := make([]time.Duration, len(pods)), make([]error, len(pods))
	next := make(chan int, len(pods))
	for i := range pods {
		next <- i
	}
	close(next)
	var all sync.WaitGroup
	for range at {
		all.Go(func() {
			for i := range next {
				rt := &libcni.RuntimeConf{ContainerID: pods[i], NetNS: netnsPath(pods[i]), IfName: podDevice}
				begun := time.Now()
				errs[i] = inNetns(a.netns, func() error { return do(ctx, a, rt) })
				took[i] = time.Since(begun)
			}
		})
	}
	all.Wait()
	return took, errors.Join(errs...)
}

// attached calls do between an ADD and a DEL.
func (a *attacher) attached(ctx context.Context, rt *libcni.RuntimeConf, do func() error) error {
	if _, err := a.cni.AddNetworkList(ctx, a.conf, rt); err != nil {
		return fmt.Errorf("ADD of %s: %w", rt.ContainerID, err)
	}
	err := do()
	if e := a.cni.DelNetworkList(ctx, a.conf, rt); e != nil {
		err = errors.Join(err, fmt.Errorf("DEL of %s: %w", rt.ContainerID, e))
	}
	return err
}

// startAttaching is the starter of a node whose plugin is ours.
func startAttaching(subnets []string) starter {
	return func(ctx context.Context, s *session) (subject, error) {
		node, err := newAgent(s)
		if err != nil {
			return nil, err
		}
		node.subnets = subnets
		for i := range node.cpus { // all, as the reference plugins have
			node.cpus[i] |= s.load[i]
		}
		a := &attacher{called: ourName, netns: node.netns, end: func() error {
			return errors.Join(node.agentNode.close(), deleteNetns(node.netns))
		}}
		err = makeNetns(node.netns)
		if err == nil {
			err = inNetns(node.netns, addUnderlay)
		}
		if err == nil {
			err = node.agentNode.start(ctx, s)
		}
		if err != nil {
			return nil, errors.Join(err, a.end())
		}
		a.cni, a.conf = node.cni, node.conf
		return a, nil
	}
}

// startReference is the starter of a node with the kernel's bridge.
func startReference(subnets []string) starter {
	return func(_ context.Context, s *session) (subject, error) {
		plugins, err := referencePlugins()
		if err != nil {
			return nil, err
		}
		dir, err := s.folder()
		if err != nil {
			return nil, err
		}
		var ranges []any
		for _, subnet := range subnets {
			ranges = append(ranges, []any{map[string]string{"subnet": subnet}})
		}
		text, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "reference", "plugins": []any{map[string]any{
			"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
			"ipam": map[string]any{"type": "host-local", "dataDir": filepath.Join(dir, "leases"), "ranges": ranges}}}})
		if err != nil {
			return nil, err
		}
		a := &attacher{called: cniBridgeName, netns: benchPrefix + "cni-bridge",
			cni: libcni.NewCNIConfigWithCacheDir([]string{plugins}, filepath.Join(dir, "cni"), nil)}
		a.end = func() error { return deleteNetns(a.netns) }
		if a.conf, err = libcni.NetworkConfFromBytes(text); err != nil {
			return nil, err
		}
		return a, makeNetns(a.netns)
	}
}

// referencePlugins finds the plugins where `make test-deps` builds them, and where packages put them.
func referencePlugins() (string, error) {
	dirs := []string{"/opt/cni/bin", "/usr/lib/cni"}
	if cache, err := os.UserCacheDir(); err == nil {
		built, _ := filepath.Glob(filepath.Join(cache, "tapyard", "cni-plugins-v*"))
		dirs = append(built, dirs...)
	}
	for _, dir := range dirs {
		_, bridge := os.Stat(filepath.Join(dir, "bridge"))
		if _, err := os.Stat(filepath.Join(dir, "host-local")); err == nil && bridge == nil {
			return dir, nil
		}
	}
	return "", &absentError{peer: cniBridgeName, why: fmt.Sprintf("the plugins bridge and host-local are in none of %q (make test-deps)", dirs)}
}

// pluginSize is what a runtime loads for each verb.
func (s *session) pluginSize() Row {
	info, err := os.Stat(filepath.Join(filepath.Dir(s.exe), "tapyard-cni"))
	if err != nil {
		s.note("cni.size: %v", err)
		return Row{Name: "cni.size", Unit: "MiB"}
	}
	size := float64(info.Size()) / (1 << 20)
	row := single("cni.size", size, "MiB")
	row.Holds = new(info.Size() <= cniSize)
	return row
}

// median of no durations is 0; it sorts them.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return percentile(d, 50)
}
