package port

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThread runs f on a thread that ends with it, and with the thread the namespaces that it was in. It isn't the
// process's first one, which Go never ends: /proc shows operators the namespace of that as the process's.
func OnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			OnThread(f) // while this one waits, it is nobody's
			return
		}
		f()
	}()
	<-done
}
