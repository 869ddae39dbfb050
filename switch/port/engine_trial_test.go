package port

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The trial moves frames by both engines, and leaves the process in its network namespace.
func TestTryEngines(t *testing.T) {
	openRings(t, 1) // or skip
	where := func() string {
		s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getpid())) // of the first thread
		check(t, err)
		return s
	}
	before := where()
	for range 5 {
		result, err := TryEngines()
		check(t, err)
		if result.ReadWrite <= 0 || result.IOUring <= 0 {
			t.Errorf("a frame takes %v by read and write, %v by io_uring", result.ReadWrite, result.IOUring)
		}
	}
	if after := where(); after != before {
		t.Errorf("the process was in %s and is in %s", before, after)
	}
}

// An agent whose pods need no TAPs starts also where none can be made: the trial fails, with what was made for it given back.
func TestTrialWithoutTAPs(t *testing.T) {
	OnThread(func() {
		refuseSyscall(t, unix.SYS_IOCTL, unix.EPERM) // TUNSETIFF
		if trial, err := newTrial(); trial != nil || !errors.Is(err, unix.EPERM) {
			t.Errorf("%v, %v", trial, err)
		}
	})
}

// Before Linux 6.4 TAP devices don't take the ring's requests. The trial says so instead of which frame was missing first.
func TestTrialOfAnOldKernel(t *testing.T) {
	openRings(t, 1) // or skip
	// It takes none either, to this day.
	file, err := os.OpenFile("/proc/self/comm", os.O_RDWR, 0)
	check(t, err)
	defer file.Close()
	OnThread(func() {
		trial, err := newTrial()
		if err != nil {
			t.Error(err)
			return
		}
		defer trial.close()
		device := trial.to.fds[0]
		defer func() { trial.to.fds[0] = device }()
		trial.to.fds[0] = int(file.Fd())
		if _, err := trial.run(); err == nil || !strings.Contains(err.Error(), "Linux 6.4") {
			t.Errorf("%v", err)
		}
	})
}

// Where io_uring is forbidden, in whole as by the seccomp profile of containers or in part, or missing, the other engine is
// chosen and the reason says so. That holds also where it worked before.
func TestChooseEngineWithoutIOUring(t *testing.T) {
	known := func() (Trial, error) { return Trial{500, 400}, nil }
	for _, c := range []struct {
		number uint32
		errno  unix.Errno
		says   string
	}{
		{unix.SYS_IO_URING_SETUP, unix.EPERM, "forbids"},
		{unix.SYS_IO_URING_SETUP, unix.ENOSYS, "5.19"},
		{unix.SYS_IO_URING_ENTER, unix.EPERM, "forbids"},
	} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlock: the filter ends with the thread
			refuseSyscall(t, c.number, c.errno)
			for _, wanted := range []Engine{IOUring, ""} {
				for _, try := range []func() (Trial, error){TryEngines, known} {
					if rings, got := ChooseEngine(wanted, 1, try); rings != nil || got.Engine != ReadWrite || !strings.Contains(got.Reason, c.says) {
						t.Errorf("%v, wanted %q: %+v, rings %t; want %q in the reason", c, wanted, got, rings != nil, c.says)
					}
				}
			}
		}()
		<-done
	}
}

// refuseSyscall has the calling thread get errno for a system call.
func refuseSyscall(t *testing.T, number uint32, errno unix.Errno) {
	const ret, jeq, ldNumber = unix.BPF_RET | unix.BPF_K, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	filter := []unix.SockFilter{
		{Code: ldNumber, K: 0},
		{Code: jeq, K: number, Jf: 1},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Error(err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		t.Error(err)
	}
	runtime.KeepAlive(filter)
}
