package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const labSuperviseVerb = "supervise"

// labFollowPause is how often the supervisor's log is looked at while it builds or ends the lab.
const labFollowPause = 20 * time.Millisecond

func labSupervisorLog() string { return filepath.Join(labDir, "supervisor.log") }
func labVerdictFile() string   { return filepath.Join(labDir, "verdict") }

// startSupervisor starts the process that builds the lab and keeps it, in a session of its own.
func (l *Lab) startSupervisor() error {
	log, err := os.OpenFile(labSupervisorLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the supervisor's log: %w", err)
	}
	defer log.Close()
	argv := l.argv(labSupervisor)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = l.environ(), "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	go cmd.Wait() // how it ended is in its verdict, also for those who didn't start it
	return nil
}

// awaitReady shows the supervisor's progress until the lab is ready, and takes over what it has learnt.
func (l *Lab) awaitReady(ctx context.Context) error {
	p, err := l.openProcess(labSupervisor)
	if err != nil {
		return err
	}
	if p == nil {
		return fmt.Errorf("the supervisor ended at once; it said: %s", labTail(labSupervisorLog()))
	}
	defer p.close()
	log, err := labOpenLog(l.Config.Progress, io.SeekStart)
	if err != nil {
		return err
	}
	defer log.Close()
	deadline := time.Now().Add(labPatience)
	for !p.ended(labFollowPause) {
		log.show()
		now, err := LabOpen()
		switch {
		case err != nil:
			return err
		case now.Ready:
			log.show()
			l.Pods, l.Ready = now.Pods, true
			return nil
		case ctx.Err() != nil:
			return errors.New("interrupted")
		case time.Now().After(deadline):
			return fmt.Errorf("the lab is not ready after %v", labPatience)
		}
	}
	log.show()
	return errors.New("the lab did not come up")
}

// end ends the lab however it is: alive, half built, or dead with orphans. It removes everything.
func (l *Lab) end() error {
	if l.ID == "" { // killed before it was described: there are no processes
		return l.sweep()
	}
	err := l.endSupervisor()
	if _, e := os.Stat(labVerdictFile()); e != nil { // it was killed before it could finish
		err = errors.Join(err, l.teardown(l.stopOrphan, l.progress()))
	}
	for _, s := range l.strangers() {
		l.progress()("note: %s is not the lab's; the namespace lives on unseen until it ends", s)
	}
	return errors.Join(err, l.readVerdict(), l.sweep())
}

// endSupervisor lets the supervisor end the lab and shows its progress; it is an error if that fails.
func (l *Lab) endSupervisor() error {
	p, err := l.openProcess(labSupervisor)
	if p == nil || err != nil {
		return err
	}
	defer p.close()
	log, err := labOpenLog(l.Config.Progress, io.SeekEnd)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	for deadline := time.Now().Add(labPatience); !p.ended(labFollowPause); log.show() {
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("the supervisor did not end within %v and was killed", labPatience), p.signal(unix.SIGKILL))
		}
	}
	log.show()
	return nil
}

// stopOrphan ends an agent whose supervisor is gone, so that nobody gets its exit code: an error shows in
// its last line only.
func (l *Lab) stopOrphan(agent string) error {
	pids, err := l.pidsOf(agent)
	if len(pids) == 0 || err != nil {
		return err
	}
	if err := l.stopProcesses(agent); err != nil {
		return err
	}
	if last := labLastLine(agent); strings.HasPrefix(last, "tapyard:") {
		return fmt.Errorf("agent %s: it said at its end: %s", agent, last)
	}
	return nil
}

// teardown detaches what is attached and stops the agents, nodes first, since the LAN carries them. It goes
// on after errors and returns them all.
func (l *Lab) teardown(stop func(agent string) error, progress func(format string, args ...any)) error {
	ctx, cancel := context.WithTimeout(context.Background(), labPatience)
	defer cancel()
	var err error
	for _, p := range l.Pods {
		err = errors.Join(err, l.detach(ctx, p.Node, p.Name, p.Netns))
	}
	progress("%d pods detached", len(l.Pods))
	for _, n := range l.Nodes {
		err = errors.Join(err, stop(n.Name))
	}
	progress("%d agents stopped", len(l.Nodes))
	for _, host := range l.hosts() {
		err = errors.Join(err, l.detach(ctx, labLAN, host.name, host.netns))
	}
	err = errors.Join(err, stop(labLAN))
	progress("LAN stopped")
	return err
}

// labNetnsName matches the namespaces of labs of any size.
var labNetnsName = regexp.MustCompile(`^` + labPrefix + `(` + labLAN + `|` + labInternet + `|n\d+(p\d+)?)$`)

func labNetnsNames() (names []string, err error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	for _, e := range entries {
		if labNetnsName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// sweep removes namespaces and files, also those that a killed predecessor made and nobody recorded.
func (l *Lab) sweep() error {
	names, err := labNetnsNames()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, labRemoveNetns(name))
	}
	if l.MadeNetns {
		_ = unix.Unmount(netnsDir, 0) // others may use it by now
		_ = os.Remove(netnsDir)
	}
	if err := errors.Join(errs...); err != nil {
		return err // the description stays for another try
	}
	if err := os.RemoveAll(labDir); err != nil {
		return fmt.Errorf("remove the lab's files: %w", err)
	}
	l.progress()("namespaces and files removed")
	return nil
}

// labRemoveNetns tolerates a file that no namespace was bound to yet.
func labRemoveNetns(name string) error {
	if err := unix.Unmount(netnsPath(name), unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unbind network namespace %s: %w", name, err)
	}
	if err := os.Remove(netnsPath(name)); err != nil {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// labClearWay removes a dead lab, and refuses when one is alive.
func labClearWay(ctx context.Context, progress io.Writer) error {
	l, err := labRemains(progress)
	if l == nil || err != nil {
		return err
	}
	pids, err := l.pidsOf(labSupervisor)
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return fmt.Errorf("a lab is up already (supervisor: process %d); use it, or end it by 'tapyard lab down'", pids[0])
	}
	l.progress()("removing what is left of a dead lab")
	if err := l.end(); err != nil {
		l.progress()("the dead lab: %v", err)
	}
	if l, err = labRemains(nil); l != nil && err == nil {
		err = fmt.Errorf("leftovers of a dead lab can't be removed; see %s and 'ip netns'", labDir)
	}
	return errors.Join(err, ctx.Err())
}

// labRemains returns what there is of a lab: its description, an empty one if there are only a folder or
// namespaces, nil if there is nothing.
func labRemains(progress io.Writer) (*Lab, error) {
	if l, err := LabOpen(); err == nil {
		l.Config.Progress = progress
		return l, nil
	}
	names, err := labNetnsNames()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(labDir); err != nil && len(names) == 0 {
		return nil, nil
	}
	return &Lab{Config: LabConfig{Progress: progress}}, nil
}

// labDown ends whatever there is of a lab.
func labDown(progress io.Writer) error {
	unlock, err := labLock()
	if err != nil {
		return err
	}
	defer unlock()
	l, err := labRemains(progress)
	if l == nil || err != nil {
		return err
	}
	return l.end()
}

// writeVerdict records how the lab ended, for whoever is waiting for that.
func (l *Lab) writeVerdict(verdict error) error {
	text := ""
	if verdict != nil {
		text = verdict.Error()
	}
	return os.WriteFile(labVerdictFile(), []byte(text), 0o600)
}

func (l *Lab) readVerdict() error {
	text, err := os.ReadFile(labVerdictFile())
	if errors.Is(err, os.ErrNotExist) || err == nil && len(text) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read how the lab ended: %w", err)
	}
	return errors.New(string(text))
}

// progress returns a function that writes lines with the time since now.
func (l *Lab) progress() func(format string, args ...any) {
	start := time.Now()
	return func(format string, args ...any) {
		if l.Config.Progress != nil {
			fmt.Fprintf(l.Config.Progress, "%7.2f s  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
		}
	}
}

// labLog shows what is appended to the supervisor's log.
type labLog struct {
	*os.File
	to io.Writer
}

func labOpenLog(to io.Writer, whence int) (*labLog, error) {
	f, err := os.Open(labSupervisorLog())
	if err == nil {
		_, err = f.Seek(0, whence)
	}
	if err != nil {
		return nil, fmt.Errorf("follow the supervisor: %w", err)
	}
	if to == nil {
		to = io.Discard
	}
	return &labLog{f, to}, nil
}

// show copies what has come since the last call; that a reader can't is no reason to stop.
func (t *labLog) show() { _, _ = io.Copy(t.to, t.File) }

// labTail returns the last 2 KiB of a file.
func labTail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-2048):]))
}
