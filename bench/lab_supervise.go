package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// An agent that lived for labStable is started again at once when it dies; one that doesn't, after a pause
// that doubles from labPauseMin to labPauseMax.
const (
	labStable   = 10 * time.Second
	labPauseMin = 100 * time.Millisecond
	labPauseMax = 5 * time.Second
)

// labSupervise is the supervisor: it builds the lab that is described in the lab's folder, keeps its agents
// running until SIGTERM, takes it down and leaves a verdict. What it writes to standard output is its log.
func labSupervise(ctx context.Context) error {
	l, err := LabOpen()
	if err != nil {
		return err
	}
	l.Config.Progress = os.Stdout
	s := &labSup{lab: l, agents: map[string]*labAgent{}, progress: l.progress()}
	err = s.build(ctx)
	if err == nil {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		err = nil // somebody wanted the end
	}
	err = errors.Join(err, l.teardown(s.stop, l.progress()))
	return l.writeVerdict(err)
}

// labSup is the supervisor's state; it is used by one goroutine.
type labSup struct {
	lab      *Lab
	agents   map[string]*labAgent
	progress func(format string, args ...any)
}

func (s *labSup) build(ctx context.Context) error {
	for _, name := range s.lab.netns() {
		if err := makeNetns(name); err != nil {
			return err
		}
	}
	s.progress("%d network namespaces", len(s.lab.netns()))
	if err := s.start(ctx, labLAN); err != nil {
		return err
	}
	for _, h := range s.lab.hosts() {
		if err := s.lab.connect(ctx, h); err != nil {
			return err
		}
	}
	s.progress("LAN with %d nodes and their gateway", len(s.lab.Nodes))
	if err := s.start(ctx, s.lab.agents()[1:]...); err != nil {
		return err
	}
	s.progress("%d agents ready", len(s.lab.Nodes))
	for i := range s.lab.Pods {
		if err := s.lab.attachPod(ctx, &s.lab.Pods[i]); err != nil {
			return err
		}
	}
	s.progress("%d pods attached", len(s.lab.Pods))
	s.lab.Ready = true
	return s.lab.save()
}

// start starts agents together and waits until each is ready.
func (s *labSup) start(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, name := range names {
		s.agents[name] = startLabAgent(s.lab, name)
	}
	for _, name := range names {
		if err := s.agents[name].await(ctx); err != nil {
			return err
		}
	}
	return nil
}

// stop ends an agent, if it was started, and returns what went wrong with it in all its life.
func (s *labSup) stop(name string) error {
	a := s.agents[name]
	if a == nil {
		return nil
	}
	close(a.stop)
	<-a.done
	return a.err
}

// labAgent is an agent that is started again when it dies.
type labAgent struct {
	lab  *Lab
	name string
	stop chan struct{} // closed to end it
	died chan struct{} // closed at its first death
	done chan struct{} // closed when it has ended for good
	err  error         // why it ended itself, how it ended at last; read after done
}

func startLabAgent(l *Lab, name string) *labAgent {
	a := &labAgent{lab: l, name: name, stop: make(chan struct{}), died: make(chan struct{}), done: make(chan struct{})}
	go a.keep()
	return a
}

// keep runs the agent until it is told to stop.
func (a *labAgent) keep() {
	defer close(a.done)
	pause := time.Duration(0)
	for deaths := 0; ; deaths++ {
		started := time.Now()
		if stopped := a.run(); stopped {
			return
		}
		if deaths == 0 {
			close(a.died)
		}
		if time.Since(started) > labStable {
			pause = 0
		}
		select {
		case <-a.stop:
			return
		case <-time.After(pause):
		}
		pause = min(max(2*pause, labPauseMin), labPauseMax)
	}
}

// run runs the agent once, and reports whether it ended because it should.
func (a *labAgent) run() (stopped bool) {
	cmd, err := a.exec()
	if err != nil {
		a.fail(err)
		return false
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
		fmt.Printf("%s agent %s (process %d) died: %v\n", time.Now().Format(time.DateTime), a.name, cmd.Process.Pid, err)
		if !cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() { // killing an agent is what a lab is for
			a.fail(fmt.Errorf("it ended by itself: %w", err))
		}
		return false
	case <-a.stop:
	}
	cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended
	select {
	case err = <-ended:
	case <-time.After(patience):
		cmd.Process.Kill()
		err = fmt.Errorf("it did not end within %v and was killed: %w", patience, <-ended)
	}
	if err != nil {
		a.fail(err)
	}
	return true
}

// exec starts the agent inside its namespace, its words going to its log.
func (a *labAgent) exec() (*exec.Cmd, error) {
	log, err := os.OpenFile(labLogFile(a.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	argv := a.lab.argv(a.name)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = a.lab.environ(), "/"
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, inNetns(labPrefix+a.name, cmd.Start)
}

// fail remembers the first thing that went wrong, with the agent's last words; the rest is in the logs.
func (a *labAgent) fail(err error) {
	if a.err == nil {
		a.err = fmt.Errorf("agent %s: %w; its last words: %s", a.name, err, labLastLine(a.name))
	}
}

// await waits until the agent answers on its admin socket.
func (a *labAgent) await(ctx context.Context) error {
	for {
		err := agentGet(ctx, labSocket(a.name, "admin.sock"), "/v1/ready", nil)
		if err == nil {
			return nil
		}
		select {
		case <-a.died:
			return fmt.Errorf("agent %s died before it was ready", a.name)
		case <-ctx.Done():
			return fmt.Errorf("agent %s is not ready: %w (%w)", a.name, err, context.Cause(ctx))
		case <-time.After(labFollowPause):
		}
	}
}
