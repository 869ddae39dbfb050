// Package handover passes descriptors and state to the next process of this service, through systemd's descriptor store:
// what is kept there survives the process, and kill -9, and while nobody reads a TAP device or a socket, the kernel
// queues what arrives. Where no service manager keeps descriptors, all of it does nothing.
package handover

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Read sd_notify(3), sd_pid_notify_with_fds(3) and sd_listen_fds(3) first.

// firstFD is SD_LISTEN_FDS_START.
const firstFD = 3

// maxFDs is how many descriptors one message takes (SCM_MAX_FD of linux/net/scm.h).
const maxFDs = 253

// Store is the service manager's store as this process sees it. Its methods may be called from any goroutine; a nil Store
// keeps nothing.
//
// Descriptors are numbers here, not *os.File: Go's poller would be told about those that don't block, and wake for every
// frame that a device receives.
type Store struct {
	socket int
	to     *unix.SockaddrUnix

	mu        sync.Mutex
	inherited map[string][]int // until they are taken
}

// Open returns the store, with what the process before has left in it, or nil if nobody keeps descriptors for us. It takes
// the variables of sd_listen_fds out of the environment, which children would inherit.
func Open() (*Store, error) {
	inherited, err := inheritance()
	path := os.Getenv("NOTIFY_SOCKET")
	if err != nil || path == "" {
		return nil, err
	}
	s := &Store{to: &unix.SockaddrUnix{Name: path}, inherited: inherited}
	if s.socket, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open a socket to the service manager: %w", err)
	}
	// A service manager that hangs must not hang pods.
	patience := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(s.socket, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		return nil, errors.Join(fmt.Errorf("set socket option SO_SNDTIMEO: %w", err), unix.Close(s.socket))
	}
	return s, nil
}

// inheritance returns the descriptors that this process was started with, by name.
func inheritance() (map[string][]int, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if pid != strconv.Itoa(os.Getpid()) { // none, or somebody else's
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	list := strings.Split(names, ":")
	if err != nil || n < 0 || n > 0 && len(list) != n {
		return nil, fmt.Errorf("the service manager passed LISTEN_FDS=%q and LISTEN_FDNAMES=%q: want a number and as many names", count, names)
	}
	byName := map[string][]int{}
	for i := range n {
		unix.CloseOnExec(firstFD + i)
		byName[list[i]] = append(byName[list[i]], firstFD+i)
	}
	return byName, nil
}

// Take returns what the process before has kept under the name, and makes it the caller's.
func (s *Store) Take(name string) []int {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fds := s.inherited[name]
	delete(s.inherited, name)
	return fds
}

// Inherits says whether anything of the process before is there that wasn't taken.
func (s *Store) Inherits() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.inherited) > 0
}

// Adopt hands what the process before has kept under the name to adopt, and says whether that took it: with an error it
// leaves all of it to us, to be closed and dropped, so that the device can be opened anew.
func (s *Store) Adopt(name string, adopt func(fds []int) error) (adopted bool, err error) {
	fds := s.Take(name)
	if fds == nil {
		return false, nil
	}
	if err = adopt(fds); err == nil {
		return true, nil
	}
	errs := []error{err}
	for _, fd := range fds {
		errs = append(errs, unix.Close(fd))
	}
	return false, errors.Join(append(errs, s.Drop(name))...)
}

// Keep has duplicates of the descriptors kept for the next process, beside those of that name already; one that is there
// isn't kept twice. The name has no colon. They stay open when they are closed here: see Drop.
func (s *Store) Keep(name string, fds ...int) error {
	if s == nil {
		return nil
	}
	for chunk := range slices.Chunk(fds, maxFDs) {
		// Without FDPOLL=0 a device that is deleted, or just down, would fall out of the store by its POLLERR.
		if err := s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, chunk...); err != nil {
			return fmt.Errorf("keep the descriptors of %s for the next start: %w", name, err)
		}
	}
	return nil
}

// Drop has the store forget what it keeps under the name.
func (s *Store) Drop(name string) error {
	if s == nil {
		return nil
	}
	if err := s.send("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
		return fmt.Errorf("have the service manager forget the descriptors of %s: %w", name, err)
	}
	return nil
}

// DropRest closes and drops what nobody has taken, and returns the names.
func (s *Store) DropRest() (names []string, err error) {
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	rest := s.inherited
	s.inherited = nil
	s.mu.Unlock()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(rest)) {
		for _, fd := range rest[name] {
			errs = append(errs, unix.Close(fd))
		}
		errs = append(errs, s.Drop(name))
		names = append(names, name)
	}
	return names, errors.Join(errs...)
}

func (s *Store) send(text string, fds ...int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(s.socket, []byte(text), rights, s.to, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}
