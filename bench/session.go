package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Config says what a benchmark compares, and how often. The zero value measures the switch alone, once.
type Config struct {
	Peers      []string  // what to measure beside the switch; raw
	Repeat     int       // pairs of runs, at least 1
	Executable string    // the tapyard binary, with tapyard-cni beside it; "" is this process's own
	Progress   io.Writer // a line per run; nil is nowhere
}

// starter brings up a subject.
type starter func(context.Context, *session) (subject, error)

// peerStarters are the peers by name.
var peerStarters = map[string]starter{"raw": startRaw}

// session is one benchmark's hold on the machine: what it made is removed by close.
type session struct {
	cfg           Config
	exe           string
	dir           string
	lock          net.Listener
	load, forward unix.CPUSet
	subjects      []subject         // the switch first
	absent        map[string]string // peers that this machine can't run, and why
}

// compare brings the switch and its peers up, measures them and takes all down again.
func compare(ctx context.Context, cfg Config, measure func(context.Context, *session) ([]Row, error)) (report *Report, err error) {
	s, err := openSession(ctx, cfg)
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
	return &Report{Host: hostLine(), Commit: commit(), Rows: rows, Absent: s.absent}, nil
}

// openSession starts the switch and its peers. The caller must close the session.
func openSession(ctx context.Context, cfg Config) (*session, error) {
	s, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	starters := []starter{startAgent}
	for _, name := range cfg.Peers {
		start, ok := peerStarters[name]
		if !ok {
			return nil, errors.Join(fmt.Errorf("unknown peer %q, known: %s", name, peerNames()), s.close())
		}
		starters = append(starters, start)
	}
	if err := s.start(ctx, starters); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
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
	s := &session{cfg: cfg, exe: cfg.Executable, absent: map[string]string{}}
	var err error
	if s.exe == "" {
		if s.exe, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find our own executable: %w", err)
		}
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

// say writes a line of progress.
func (s *session) say(format string, args ...any) {
	fmt.Fprintf(s.cfg.Progress, format+"\n", args...)
}

// close ends everything and removes it; an error is a subject's, such as a ledger that didn't balance.
func (s *session) close() error {
	var err error
	for _, sub := range s.subjects {
		if e := sub.close(); e != nil {
			err = errors.Join(err, fmt.Errorf("stop %s: %w", sub.name(), e))
		}
	}
	err = errors.Join(err, os.RemoveAll(s.dir))
	s.lock.Close()
	return err
}

// peerNames lists what a benchmark can measure beside the switch.
func peerNames() string {
	return strings.Join(slices.Sorted(maps.Keys(peerStarters)), ", ")
}
