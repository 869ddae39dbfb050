package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"tapyard/switch/port"
	"tapyard/switch/selftest"
)

// Names of offloadsOff that aren't offloads of TAPs.
const (
	offTrains = "trains" // several datagrams of a tunnel in one message (UDP_SEGMENT, UDP_GRO)
	offAll    = "all"
)

func offloadNames() []string { return append(port.CapNames[:], offTrains, offAll) }

// parseOffload returns the name of an offload that there is.
func parseOffload(name string) (string, error) {
	if !slices.Contains(offloadNames(), name) {
		return "", fmt.Errorf("%q: an offload is one of %s", name, strings.Join(offloadNames(), ", "))
	}
	return name, nil
}

// off says whether the configuration does without an offload.
func (c *config) off(name string) bool {
	return slices.Contains(c.OffloadsOff, name) || slices.Contains(c.OffloadsOff, offAll)
}

// offloads is what an agent does without.
type offloads struct {
	taps   port.Caps
	singly bool // the tunnel's datagrams
	slices bool // of super-frames, to peers that take them
}

// chooseOffloads leaves off what the configuration says and what this kernel has failed to do right.
func (a *agent) chooseOffloads() {
	for i, name := range port.CapNames {
		if a.cfg.off(name) {
			a.without.taps |= 1 << i
		}
	}
	a.without.singly, a.without.slices = a.cfg.off(offTrains), a.cfg.Wire == wirePlain
	results := a.proofs()
	a.without.taps |= selftest.Failed(results)
	for _, r := range results {
		if r.OK() {
			continue
		}
		a.log.Error("the self-test of an offload failed, so the agent does without it ('tapyard doctor offloads' repeats the test)",
			"offload", r.Name, "test", r.Proof, "error", r.Err)
		a.without.singly = a.without.singly || r.Name == selftest.Tunnel
		a.without.slices = a.without.slices || r.Name == selftest.Wire
	}
}

// proofs returns the results of the self-test on this kernel by this program. An agent that can't make the test goes on
// without it.
func (a *agent) proofs() []selftest.Result {
	if a.proven.Results != nil {
		return a.proven.Results
	}
	start := time.Now()
	results, err := selftest.Run()
	if err != nil {
		a.log.Warn("the offloads' self-test could not be made; the agent uses what the kernel offers", "error", err)
		return nil
	}
	a.log.Info("self-test of offloads made", "tests", len(results), "took", time.Since(start).Round(time.Millisecond))
	a.proven.Results = results
	a.keepProven()
	return results
}
