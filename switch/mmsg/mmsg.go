// Package mmsg receives and sends several datagrams or frames per system call, on sockets that never block, and
// reads what such a socket dropped. It is what packet ports and tunnels have in common.
package mmsg

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read recvmmsg(2), sendmmsg(2) and socket(7) first.

// Message is struct mmsghdr of sys/socket.h; Go pads it as C does.
type Message struct {
	Hdr unix.Msghdr
	Len uint32 // of the message in bytes, set by the kernel
}

// Recv receives up to len(msgs) messages that are there.
func Recv(fd int, msgs []Message) (int, unix.Errno) { return call(unix.SYS_RECVMMSG, fd, msgs) }

// Send sends messages from the first on and returns how many were sent, or why the first wasn't.
func Send(fd int, msgs []Message) (int, unix.Errno) { return call(unix.SYS_SENDMMSG, fd, msgs) }

// call uses RawSyscall: the socket never blocks, and telling Go's scheduler costs a tenth of a small call.
func call(number uintptr, fd int, msgs []Message) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// SetBuffer makes v describe b.
func SetBuffer(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}

// Drops returns how many messages found the socket's receive buffer full. The kernel counts in 32 bits.
func Drops(fd int) (uint64, error) {
	const drops = 8 // SK_MEMINFO_DROPS of linux/sock_diag.h, the last of 9
	var info [drops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("read SO_MEMINFO: %w", errno)
	}
	return uint64(info[drops]), nil
}
