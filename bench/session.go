package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Config says what a benchmark compares, and how often. The zero value measures the switch alone, once.
type Config struct {
	Peers      []string  // what to measure beside the switch, see peerNames
	Repeat     int       // pairs of runs, at least 1
	Executable string    // the tapyard binary, with tapyard-cni beside it; "" is this process's own
	Progress   io.Writer // a line per run; nil is nowhere
}

// starter brings up a subject.
type starter func(context.Context, *session) (subject, error)

// sameNodePeers join two pods on one node.
var sameNodePeers = map[string]starter{"raw": startRaw, "ovs": startOVS, "bridge": startBridge, "vde2": startVDE}

// session is one benchmark's hold on the machine: what it made is removed by close.
type session struct {
	cfg           Config
	exe           string
	dir           string
	folders       int // in dir
	lock          net.Listener
	load, forward unix.CPUSet
	subjects      []subject         // the switch first; those that are up
	absent        map[string]string // peers that this machine can't run, and why
	notes         []string          // of the report
	series        []Series          // of the report
}

// runBenchmark takes the machine, measures and reports.
func runBenchmark(ctx context.Context, cfg Config, measure func(context.Context, *session) ([]Row, error)) (report *Report, err error) {
	if err := checkPeers(cfg.Peers); err != nil {
		return nil, err
	}
	s, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	rows, err := measure(ctx, s)
	if ctx.Err() != nil {
		err = errors.New("interrupted") // instead of how the workers ended
	}
	if err != nil {
		return nil, err
	}
	return &Report{Host: hostLine(), Commit: commit(), Rows: rows, Absent: s.absent, Notes: s.notes, Series: s.series}, nil
}

// sameNode brings up the switch, and those of the peers that the benchmark was asked for, each with two pods on one
// node. Then it measures, and takes them down again.
func (s *session) sameNode(ctx context.Context, peers []string, measure func(context.Context) ([]Row, error)) ([]Row, error) {
	return s.beside(ctx, startAgent, sameNodePeers, peers, measure)
}

// beside measures a subject and its peers; both are up only meanwhile.
func (s *session) beside(ctx context.Context, ours starter, known map[string]starter, peers []string, measure func(context.Context) ([]Row, error)) (rows []Row, err error) {
	starters := []starter{ours}
	for _, name := range peers {
		if slices.Contains(s.cfg.Peers, name) && s.absent[name] == "" {
			starters = append(starters, known[name])
		}
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(ctx, starters); err != nil {
		return nil, err
	}
	return measure(ctx)
}

// prepare takes the machine, removes what killed benchmarks have left and makes a temporary folder.
func prepare(cfg Config) (*session, error) {
	if unix.Geteuid() != 0 {
		return nil, errors.New("benchmarks make network namespaces and devices, which only root may: run this with sudo")
	}
	cfg.Repeat = max(cfg.Repeat, 1)
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	s := &session{cfg: cfg, absent: map[string]string{}}
	var err error
	if s.exe, err = cfg.executable(); err != nil {
		return nil, err
	}
	if s.load, s.forward, err = splitCPUs(); err != nil {
		return nil, err
	}
	if s.lock, err = lockBench(); err != nil {
		return nil, err
	}
	err = removeLeftovers()
	if err == nil {
		s.dir, err = os.MkdirTemp("", benchPrefix)
	}
	if err != nil {
		s.lock.Close()
		return nil, err
	}
	return s, nil
}

// executable is the tapyard binary.
func (c *Config) executable() (string, error) {
	if c.Executable != "" {
		return c.Executable, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find our own executable: %w", err)
	}
	return exe, nil
}

// start brings the subjects up in order; a peer that is absent is noted.
func (s *session) start(ctx context.Context, starters []starter) error {
	for _, start := range starters {
		sub, err := start(ctx, s)
		var absent *absentError
		switch {
		case errors.As(err, &absent):
			s.absent[absent.peer] = absent.why
			s.say("%v", absent)
		case err != nil:
			return err
		default:
			s.subjects = append(s.subjects, sub)
		}
	}
	return nil
}

// folder makes a folder for one subject. Its name is short, for a unix socket's path has at most 107 bytes.
func (s *session) folder() (string, error) {
	s.folders++
	dir := filepath.Join(s.dir, strconv.Itoa(s.folders))
	return dir, os.Mkdir(dir, 0o700)
}

// note tells a reader of the report, once, what else there is to know.
func (s *session) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(s.notes, text) {
		s.notes = append(s.notes, text)
	}
}

// say writes a line of progress.
func (s *session) say(format string, args ...any) {
	fmt.Fprintf(s.cfg.Progress, format+"\n", args...)
}

// stop ends the subjects; an error is a subject's, such as a ledger that didn't balance.
func (s *session) stop() error {
	var err error
	for _, sub := range s.subjects {
		if e := sub.close(); e != nil {
			err = errors.Join(err, fmt.Errorf("stop %s: %w", sub.name(), e))
		}
	}
	s.subjects = nil
	return err
}

// close ends everything and removes it; an error is as of stop.
func (s *session) close() error {
	err := errors.Join(s.stop(), os.RemoveAll(s.dir))
	s.lock.Close()
	return err
}

// checkPeers refuses names of nobody.
func checkPeers(names []string) error {
	for _, name := range names {
		if !slices.Contains(peerNames(), name) {
			return fmt.Errorf("unknown peer %q, known: %s", name, strings.Join(peerNames(), ", "))
		}
	}
	return nil
}

// peerNames lists what a benchmark can measure beside the switch.
func peerNames() []string {
	names := slices.Concat(slices.Collect(maps.Keys(sameNodePeers)), slices.Collect(maps.Keys(crossNodePeers(true))))
	slices.Sort(names)
	return slices.Compact(names)
}
