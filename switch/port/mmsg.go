package port

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read recvmmsg(2) and sendmmsg(2) first.

// mmsghdr is struct mmsghdr of sys/socket.h; Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32 // of the message, set by the kernel
}

// recvmmsg receives up to len(msgs) frames that are there.
func recvmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) { return mmsg(unix.SYS_RECVMMSG, fd, msgs) }

// sendmmsg sends messages from the first on and returns how many were sent, or why the first wasn't.
func sendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) { return mmsg(unix.SYS_SENDMMSG, fd, msgs) }

// mmsg uses RawSyscall: the socket never blocks, and telling Go's scheduler costs a tenth of a small call.
func mmsg(call uintptr, fd int, msgs []mmsghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// setBuffer makes v describe b.
func setBuffer(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}
