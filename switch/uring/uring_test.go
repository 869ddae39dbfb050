package uring

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newRing returns a ring of 8 entries, or skips where there is none to be had.
func newRing(t testing.TB) *Ring {
	t.Helper()
	r, err := New(8)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	check(t, err)
	t.Cleanup(func() { check(t, r.Close()) })
	return r
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pipe returns descriptors that don't block. Each write becomes one read of a pipe in packet mode.
func pipe(t testing.TB) (read, write int) {
	t.Helper()
	var fds [2]int
	check(t, unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_DIRECT))
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

// Layouts and numbers are those of the C header.
func TestLayout(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler")
	}
	program := filepath.Join(t.TempDir(), "layout")
	cmd := exec.Command(cc, "-x", "c", "-o", program, "-")
	cmd.Stdin = strings.NewReader(`
#include <stddef.h>
#include <stdio.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#define S struct io_uring_sqe
#define C struct io_uring_cqe
#define P struct io_uring_params
#define Q struct io_sqring_offsets
#define R struct io_cqring_offsets
#define O(s, f) offsetof(s, f)
#define N(x) (unsigned long)(x)
int main(void) {
	unsigned long v[] = {
		sizeof(S), O(S, buf_index), O(S, flags), O(S, fd), O(S, off), O(S, addr), O(S, len), O(S, rw_flags), O(S, user_data),
		sizeof(C), O(C, user_data), O(C, res),
		sizeof(P), O(P, flags), O(P, features), O(P, sq_off), O(P, cq_off),
		O(Q, head), O(Q, tail), O(Q, array), O(R, head), O(R, tail), O(R, cqes),
		N(IORING_OFF_SQ_RING), N(IORING_OFF_SQES), N(IORING_SETUP_SUBMIT_ALL), N(IORING_SETUP_COOP_TASKRUN),
		N(IORING_FEAT_SINGLE_MMAP), N(IORING_REGISTER_BUFFERS),
		N(IORING_OP_READ), N(IORING_OP_WRITE), N(IORING_OP_READ_FIXED), N(IORING_OP_WRITE_FIXED), N(IOSQE_CQE_SKIP_SUCCESS),
		N(RWF_NOWAIT),
	};
	for (unsigned i = 0; i < sizeof v / sizeof *v; i++)
		printf("%lu ", v[i]);
}`)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("no header of Linux %s or later: %s", minKernelVersion, out)
	}
	out, err := exec.Command(program).Output()
	check(t, err)
	var (
		s sqe
		c cqe
		p params
	)
	ours := []uintptr{
		unsafe.Sizeof(s), unsafe.Offsetof(s.bufIndex), unsafe.Offsetof(s.flags), unsafe.Offsetof(s.fd), unsafe.Offsetof(s.off), unsafe.Offsetof(s.addr),
		unsafe.Offsetof(s.len), unsafe.Offsetof(s.rwFlags), unsafe.Offsetof(s.userData),
		unsafe.Sizeof(c), unsafe.Offsetof(c.userData), unsafe.Offsetof(c.res),
		unsafe.Sizeof(p), unsafe.Offsetof(p.flags), unsafe.Offsetof(p.features), unsafe.Offsetof(p.sq), unsafe.Offsetof(p.cq),
		unsafe.Offsetof(p.sq.head), unsafe.Offsetof(p.sq.tail), unsafe.Offsetof(p.sq.array),
		unsafe.Offsetof(p.cq.head), unsafe.Offsetof(p.cq.tail), unsafe.Offsetof(p.cq.cqes),
		offRings, offSQEs, setupSubmitAll, setupCoopTaskrun, featSingleMmap, registerBuffers,
		opRead, opWrite, opReadFixed, opWriteFixed, sqeSkipSuccess, rwfNowait,
	}
	if got, want := fmt.Sprint(ours), fmt.Sprint(strings.Fields(string(out))); got != want {
		t.Errorf("ours %s, want %s", got, want)
	}
}

// What is written arrives in order, over many turns of the queues; a write completes when it fails, with its number, and
// doesn't stop those behind it; a read of what isn't there completes at once.
func TestReadsAndWrites(t *testing.T) {
	r := newRing(t)
	in, out := pipe(t)
	var sent, received byte
	bufs := make([][4]byte, r.Cap())
	for range 100 {
		for i := range 5 {
			sent++
			bufs[i][0] = sent
			if i == 2 {
				r.Write(-1, bufs[7][:], 99)
			}
			r.Write(out, bufs[i][:1+i%2], i)
		}
		submit(t, r)
		if id, res, ok := r.Next(); !ok || id != 99 || unix.Errno(-res) != unix.EBADF {
			t.Fatalf("completion %d of the wrong descriptor: %d, %t", id, res, ok)
		}
		for i := range 8 {
			r.Read(in, bufs[i][:], i)
		}
		submit(t, r)
		for i := range 8 {
			id, res, ok := r.Next()
			want := int32(1 + i%2)
			if i >= 5 {
				want = -int32(unix.EAGAIN)
			} else if received++; bufs[i][0] != received {
				t.Fatalf("read %d brought number %d, want %d", i, bufs[i][0], received)
			}
			if !ok || id != i || res != want {
				t.Fatalf("read %d: completion of %d: %d, %t, want %d", i, id, res, ok, want)
			}
		}
		if _, _, ok := r.Next(); ok {
			t.Fatal("a completion too many")
		}
	}
}

func submit(t testing.TB, r *Ring) {
	t.Helper()
	if left, err := r.Submit(); left != 0 || err != nil {
		t.Fatalf("Submit: %d left, %v", left, err)
	}
}

// When a call fails the requests are forgotten, and the ring goes on.
func TestSubmitFails(t *testing.T) {
	r := newRing(t)
	in, out := pipe(t)
	fd := r.fd
	r.fd = in // of no ring
	r.Read(in, make([]byte, 1), 1)
	r.Read(in, make([]byte, 1), 2)
	if left, err := r.Submit(); left != 2 || err == nil {
		t.Errorf("%d left, %v", left, err)
	}
	r.fd = fd
	r.Write(out, make([]byte, 1), 3)
	r.Read(in, make([]byte, 1), 4)
	submit(t, r)
	if id, res, ok := r.Next(); id != 4 || res != 1 || !ok {
		t.Errorf("completion %d: %d, %t, want that of the later read", id, res, ok)
	}
}

// Who is kept from io_uring reads why, and what would help.
func TestUnavailable(t *testing.T) {
	for errno, says := range map[unix.Errno]string{unix.ENOSYS: "Linux 5.19", unix.EINVAL: "Linux 5.19", unix.EPERM: "io_uring"} {
		if err := unavailable(errno); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v, want %q in it", errno, err, says)
		}
	}
	if err := unavailable(unix.EMFILE); errors.Is(err, ErrUnavailable) || !errors.Is(err, unix.EMFILE) {
		t.Errorf("EMFILE: %v", err)
	}
}

// Bytes inside and outside of registered memory arrive alike, also where a region begins and ends; and what lies inside
// goes the registered way, as a page shows that the process itself can't reach any more.
func TestRegisterMemory(t *testing.T) {
	r := newRing(t)
	page := unix.Getpagesize()
	a, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	check(t, err)
	defer unix.Munmap(a)
	b, plain := make([]byte, 3*page), make([]byte, page)
	check(t, r.RegisterMemory(a, b))
	in, out := pipe(t)
	for i, c := range []struct {
		m      []byte
		region int
	}{{a[:9], 0}, {a[2*page-9:], 0}, {b[page-4 : page+5], 1}, {b[3*page-9:], 1}, {plain[:9], -1}} {
		if got := r.region(c.m); got != c.region {
			t.Errorf("case %d: region %d", i, got)
		}
		copy(c.m, fmt.Sprintf("number %2d", i))
		r.Write(out, c.m, 0)
		submit(t, r)
		clear(c.m)
		r.Read(in, c.m, 0)
		submit(t, r)
		if _, res, _ := r.Next(); res != 9 || string(c.m) != fmt.Sprintf("number %2d", i) {
			t.Errorf("case %d: result %d, %q", i, res, c.m)
		}
	}
	check(t, unix.Mprotect(a, unix.PROT_NONE))
	r.Write(out, a[:1], 1)
	r.Read(in, plain, 2)
	submit(t, r)
	if id, res, _ := r.Next(); id != 2 || res != 1 {
		t.Errorf("completion of %d: %d; want that the write passed", id, res)
	}
	if err := r.RegisterMemory(plain); err == nil {
		t.Error("memory was registered twice")
	}
}
