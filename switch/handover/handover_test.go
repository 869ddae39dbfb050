package handover

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// manager is the other end: it reads what a service manager would.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T) (*manager, *Store) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	return &manager{t, conn}, s
}

func (m *manager) receive() (text string, fds []int) {
	m.t.Helper()
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxFDs))
	n, on, _, _, err := m.conn.ReadMsgUnix(b, oob)
	if err != nil {
		m.t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		m.t.Fatal(err)
	}
	for _, c := range messages {
		got, err := unix.ParseUnixRights(&c)
		if err != nil {
			m.t.Fatal(err)
		}
		fds = append(fds, got...)
	}
	return string(b[:n]), fds
}

func ino(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestKeepSendsTheDescriptorsThemselves(t *testing.T) {
	m, s := newManager(t)
	var fds []int
	for range maxFDs + 1 { // one more than a message takes
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		fds = append(fds, fd)
	}
	if err := s.Keep("pod/c1/eth0", fds...); err != nil {
		t.Fatal(err)
	}
	var got []int
	for range 2 {
		text, some := m.receive()
		if text != "FDSTORE=1\nFDPOLL=0\nFDNAME=pod/c1/eth0" {
			t.Errorf("message %q", text)
		}
		got = append(got, some...)
	}
	if len(got) != len(fds) {
		t.Fatalf("%d descriptors arrived, want %d", len(got), len(fds))
	}
	for i := range fds {
		if ino(t, got[i]) != ino(t, fds[i]) {
			t.Errorf("descriptor %d is another file's", i)
		}
		unix.Close(got[i])
	}
	if err := s.Drop("pod/c1/eth0"); err != nil {
		t.Fatal(err)
	}
	if text, _ := m.receive(); text != "FDSTOREREMOVE=1\nFDNAME=pod/c1/eth0" {
		t.Errorf("message %q", text)
	}
}

// The numbers from 3 on are the test binary's own, so what is inherited is looked at as a map.
func TestInheritanceIsThisProcesssOnly(t *testing.T) {
	for _, c := range []struct {
		pid, n, names string
		want          int
		fails         bool
	}{
		{"", "", "", 0, false},
		{"1", "2", "a:b", 0, false}, // our parent's
		{fmt.Sprint(os.Getpid()), "0", "", 0, false},
		{fmt.Sprint(os.Getpid()), "2", "a", 0, true},
		{fmt.Sprint(os.Getpid()), "-1", "a", 0, true},
		{fmt.Sprint(os.Getpid()), "many", "a", 0, true},
	} {
		t.Setenv("LISTEN_PID", c.pid)
		t.Setenv("LISTEN_FDS", c.n)
		t.Setenv("LISTEN_FDNAMES", c.names)
		got, err := inheritance()
		if len(got) != c.want || (err != nil) != c.fails {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
		if os.Getenv("LISTEN_FDS") != "" {
			t.Errorf("%+v: children inherit it", c)
		}
	}
}

func TestRestIsClosedAndDropped(t *testing.T) {
	m, s := newManager(t)
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	s.inherited = map[string][]int{"taken": {-1}, "pod/gone/eth0": {fd}}
	if got := s.Take("taken"); !slices.Equal(got, []int{-1}) || s.Take("taken") != nil {
		t.Errorf("took %v, or twice", got)
	}
	names, err := s.DropRest()
	if err != nil || !slices.Equal(names, []string{"pod/gone/eth0"}) {
		t.Errorf("rest %v, %v", names, err)
	}
	if text, _ := m.receive(); !strings.HasSuffix(text, "FDNAME=pod/gone/eth0") {
		t.Errorf("message %q", text)
	}
	if unix.Close(fd) != unix.EBADF {
		t.Error("the descriptor is still open")
	}
}

func TestWithoutAStoreNothingIsKept(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	s, err := Open()
	if s != nil || err != nil {
		t.Fatalf("%v, %v", s, err)
	}
	if names, err := s.DropRest(); s.Take("a") != nil || s.Keep("a", 0) != nil || s.Drop("a") != nil || names != nil || err != nil {
		t.Error("a nil store does something")
	}
}

func content(b []byte) func([]byte) []byte {
	return func(to []byte) []byte { return append(to, b...) }
}

// successor is the memory that a next process would have.
func successor(t *testing.T, m *Memory, version uint32) *Memory {
	next := &Memory{version: version}
	for i, fd := range m.files {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		next.files[i] = dup
	}
	next.recall()
	t.Cleanup(func() { next.Close() })
	return next
}

func newMemory(t *testing.T, version uint32) *Memory {
	m, err := OpenMemory(nil, version)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func wants(t *testing.T, m *Memory, want []byte) {
	t.Helper()
	if got, err := m.Read(); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
}

func TestMemoryIsWhatWasWrittenLast(t *testing.T) {
	m := newMemory(t, 1)
	wants(t, successor(t, m, 1), nil)
	for i := range 5 {
		b := bytes.Repeat([]byte{byte(i)}, 10000>>i) // each shorter than the one before
		if err := m.Write(content(b)); err != nil {
			t.Fatal(err)
		}
		next := successor(t, m, 1)
		wants(t, next, b)
		if i%2 == 1 { // and goes on from there
			m = next
		}
	}
}

// A kill in the middle of writing, at any byte, leaves what was written before.
func TestMemorySurvivesAHalfWrittenFile(t *testing.T) {
	m := newMemory(t, 1)
	for _, s := range []string{"one", "two"} {
		if err := m.Write(content([]byte(s))); err != nil {
			t.Fatal(err)
		}
	}
	last := 1 - m.next
	whole := make([]byte, 100)
	n, err := unix.Pread(m.files[last], whole, 0)
	if err != nil {
		t.Fatal(err)
	}
	whole = whole[:n]
	for cut := range n {
		if err := unix.Ftruncate(m.files[last], int64(cut)); err != nil {
			t.Fatal(err)
		}
		wants(t, successor(t, m, 1), []byte("one"))
		if _, err := unix.Pwrite(m.files[last], whole, 0); err != nil {
			t.Fatal(err)
		}
	}
	for at := range whole {
		damaged := bytes.Clone(whole)
		damaged[at] ^= 0x10
		if _, err := unix.Pwrite(m.files[last], damaged, 0); err != nil {
			t.Fatal(err)
		}
		wants(t, successor(t, m, 1), []byte("one"))
	}
}

func TestMemoryOfAnotherBuild(t *testing.T) {
	m := newMemory(t, 2)
	if err := m.Write(content([]byte("new"))); err != nil {
		t.Fatal(err)
	}
	old := successor(t, m, 1)
	if got, err := old.Read(); got != nil || !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "form 2, this build reads 1") {
		t.Errorf("read %q, %v", got, err)
	}
	if err := old.Write(content([]byte("old"))); err != nil {
		t.Fatal(err)
	}
	wants(t, successor(t, old, 1), []byte("old"))
}
