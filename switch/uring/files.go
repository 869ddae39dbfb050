package uring

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxPlaces is for how many descriptors a ring has a place: of those with lower numbers. 250 pods have as many
// TAPs; a place costs the kernel 8 bytes.
const maxPlaces = 4096

// File is a descriptor for requests. It has the same value for all rings that it is registered with.
type File struct {
	fd    int32 // or the place, which has the same number
	flags uint8 // of requests
}

// FileOf returns a File that isn't registered: of each request, the kernel looks the descriptor up and counts its users.
func FileOf(fd int) File { return File{fd: int32(fd)} }

// reservePlaces leaves the ring without places if the kernel has none for us (RLIMIT_NOFILE bounds their number).
// It is called for kernels of 6.10 and later only: 6.3 and older may keep a descriptor for a second after Unregister.
func (r *Ring) reservePlaces() {
	places := maxPlaces
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		places = int(min(maxPlaces, limit.Cur))
	}
	reg := filesRegister{nr: uint32(places), flags: registerSparse}
	if r.register(registerFiles2, unsafe.Pointer(&reg), unsafe.Sizeof(reg)) == 0 {
		r.places = places
	}
}

// Register spares each request on fd 17 ns (Linux 6.18) by giving the kernel a reference to keep until Unregister: the
// descriptor isn't closed before. Without a place for it in all of the rings, the File is one that isn't registered.
func Register(rings []*Ring, fd int) File {
	for i, r := range rings {
		if fd >= r.places || !r.update(fd, int32(fd)) {
			unregister(rings[:i], fd)
			return FileOf(fd)
		}
	}
	return File{fd: int32(fd), flags: sqeFixedFile}
}

// Unregister undoes Register with the same rings. No request on f may follow.
func Unregister(rings []*Ring, f File) {
	if f.flags&sqeFixedFile != 0 {
		unregister(rings, int(f.fd))
	}
}

func unregister(rings []*Ring, fd int) {
	for _, r := range rings {
		r.update(fd, -1) // of a place that is there, and in use
	}
}

func (r *Ring) update(place int, fd int32) bool {
	var pinned runtime.Pinner
	defer pinned.Unpin()
	pinned.Pin(&fd) // a stack moves
	u := filesUpdate{offset: uint32(place), fds: uint64(uintptr(unsafe.Pointer(&fd)))}
	return r.register(registerFilesUpdate, unsafe.Pointer(&u), 1) == 0
}

func (r *Ring) register(op uintptr, arg unsafe.Pointer, n uintptr) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), op, uintptr(arg), n, 0, 0)
	return errno
}
