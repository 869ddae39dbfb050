// Package selftest proves on this kernel, with real bytes, the offloads that the switch's ports use: kernels have had
// bugs in each of them. It moves TCP streams and UDP trains between two network namespaces of its own, over TAP
// devices as pods have them, and frames between two tunnels, and compares every byte at the far end.
package selftest

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

// patience is how long one proof may take: on an idle machine it is some milliseconds.
const patience = 2 * time.Second

// Tunnel is the name of the proof that isn't about TAPs.
const Tunnel = "tunnel"

// Result is what became of one proof.
type Result struct {
	Name  string        `json:"name"`  // of the offload, as in port.Caps, or of the tunnel's
	Proof string        `json:"proof"` // what was done, for people
	Took  time.Duration `json:"took_ns"`
	Err   string        `json:"error,omitempty"` // "" if it works
	Caps  port.Caps     `json:"caps,omitempty"`  // of a TAP, that this is about
}

// OK says that the offload works.
func (r *Result) OK() bool { return r.Err == "" }

// Failed returns the offloads of a TAP that don't work.
func Failed(results []Result) (caps port.Caps) {
	for i := range results {
		if !results[i].OK() {
			caps |= results[i].Caps
		}
	}
	return caps
}

// Run proves everything, in about 0.1 s. It needs CAP_NET_ADMIN and CAP_SYS_ADMIN. What it makes is gone when it returns.
// An error says that the proofs couldn't be made at all.
func Run() (results []Result, err error) {
	port.OnThread(func() { results, err = run() })
	return results, err
}

func run() ([]Result, error) {
	t, err := newTopology()
	if err != nil {
		return nil, fmt.Errorf("set up two network namespaces for the self-test: %w", err)
	}
	defer t.close()
	return t.prove(), nil
}

func (t *topology) prove() (results []Result) {
	for _, p := range proofs {
		start := time.Now()
		r := Result{Name: p.name, Proof: p.text, Caps: p.caps}
		if err := p.run(t); err != nil {
			r.Err = err.Error()
		}
		r.Took = time.Since(start).Round(10 * time.Microsecond)
		results = append(results, r)
	}
	return results
}

// proof is one thing to be proven.
type proof struct {
	name, text string
	caps       port.Caps
	run        func(*topology) error
}

var proofs = []proof{
	{"csum", "UDP with a checksum that the device is to complete", port.CapCsum, func(t *topology) error { return t.datagrams(ipv4, whole) }},
	{"tso4", "a TCP stream in super-frames, IPv4", port.CapTSO4, func(t *topology) error { return t.stream(ipv4, whole) }},
	{"tso6", "a TCP stream in super-frames, IPv6", port.CapTSO6, func(t *topology) error { return t.stream(ipv6, whole) }},
	{"uso", "trains of UDP in super-frames, IPv4 and IPv6", port.CapUSO, func(t *topology) error {
		return errors.Join(t.train(ipv4, whole), t.train(ipv6, whole))
	}},
	{"segmentation", "super-frames of TCP and UDP cut by the switch", 0, func(t *topology) error { return t.all(cut) }},
	{"coalescing", "segments of TCP and UDP merged by the switch", 0, func(t *topology) error { return t.all(merged) }},
	{Tunnel, "trains of datagrams through UDP_SEGMENT and UDP_GRO", 0, func(t *topology) error { return t.tunnel() }},
	{Wire, "super-frames and small ones between tunnels that agree upon slices and bundles", 0, func(t *topology) error { return t.wire() }},
}

// all is each kind of traffic in both families.
func (t *topology) all(how treatment) error {
	return errors.Join(t.stream(ipv4, how), t.stream(ipv6, how), t.train(ipv4, how), t.train(ipv6, how))
}

// family is AF_INET or AF_INET6.
type family int

const ipv4, ipv6 family = unix.AF_INET, unix.AF_INET6

func (f family) String() string {
	if f == ipv4 {
		return "IPv4"
	}
	return "IPv6"
}
