package port

import (
	"testing"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
)

// A read that is shorter than the offload header, which no tun device of today returns, is a drop and not a
// frame with a negative length. A datagram socket stands in for the device.
func TestShortRead(t *testing.T) {
	t.Run("read", func(t *testing.T) { testShortRead(t, nil, 0) })
	t.Run("io_uring", func(t *testing.T) { testShortRead(t, openRings(t, 1), firstBatch) })
}

func testShortRead(t *testing.T, rings *Rings, batch int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	for n := 1; n <= 10; n++ { // 10 are the header of an empty frame
		if _, err := unix.Write(fds[1], make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	var b frame.Burst
	var st Stats
	q := tapRx{fd: fds[0], rings: rings, batch: batch}
	if more := q.Recv(0, &b, frame.NewPoolWithWindows(frame.BurstSize, frame.DefaultArena, frame.BurstSize), &st); more {
		t.Error("more is said to wait")
	}
	if short := st.Drops[drop.ShortRead].Frames.Load(); short != 9 || st.Rx.Frames.Load() != 9 || b.Len() != 1 || b.Frames()[0].Len() != 0 {
		t.Errorf("%d short reads, %d frames received and dropped, %d handed on; want 9, 9 and 1 of no length", short, st.Rx.Frames.Load(), b.Len())
	}
	b.Release()
}
