package podapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// floodPatience is long beside a flood that gives way, 2 s, and short beside one that doesn't: 10,000
// connections for 10 s each, 256 at once, are 6 minutes.
const floodPatience = 2 * time.Minute

// flood opens n connections and has each begin a request, with a descriptor, that never becomes whole. They
// stay open until the test ends. begun is closed when half of them are there, or no more come.
func flood(t *testing.T, socket string, n int) (begun chan struct{}, wait func()) {
	t.Helper()
	begun = make(chan struct{})
	half := sync.OnceFunc(func() { close(begun) })
	var flooding sync.WaitGroup
	var held []*net.UnixConn
	flooding.Go(func() {
		defer half()
		ctx, cancel := context.WithTimeout(context.Background(), floodPatience)
		defer cancel()
		for i := range n {
			if i == n/2 {
				half()
			}
			c, err := dialAgent(ctx, socket)
			if err != nil {
				t.Errorf("connection %d of the flood: %v", i, err)
				return
			}
			held = append(held, c)
			// An error means that this one had to give way already.
			_, _, _ = c.WriteMsgUnix([]byte{0}, unix.UnixRights(0), nil)
		}
	})
	t.Cleanup(func() {
		for _, c := range held {
			c.Close()
		}
	})
	return begun, flooding.Wait
}

// floodSize is 10,000, or what the descriptors allow: one of ours and sometimes two of the server's each.
func floodSize(t *testing.T) int {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return int(min(10_000, limit.Cur*3/4))
}

// Ten thousand connections that never say what they want delay nobody for long, and leave nothing behind.
func TestAFloodOfHalfOpenConnectionsGivesWay(t *testing.T) {
	a := serve(t, answerOK)
	before := openFDs(t)
	begun, wait := flood(t, a.socket, floodSize(t))
	ctx, cancel := context.WithTimeout(context.Background(), floodPatience)
	defer cancel()
	<-begun
	for range 20 {
		if resp, err := Call(ctx, a.socket, request("ADD"), -1); err != nil || resp.Error != nil {
			t.Errorf("an honest request during the flood: %v, %v", resp.Error, err)
		}
	}
	wait()
	if resp, err := Call(ctx, a.socket, request("ADD"), -1); err != nil || resp.Error != nil {
		t.Errorf("an honest request behind the flood: %v, %v", resp.Error, err)
	}
	if n := openFDs(t); n > before+floodSize(t)+2*maxConns+1 {
		t.Errorf("%d descriptors for %d connections, of which the server has at most %d", n-before, floodSize(t), maxConns)
	}
}

// Clients that trickle bytes keep their places no better.
func TestSlowWritersGiveWay(t *testing.T) {
	a := serve(t, answerOK)
	full := message(t, request("ADD"))
	ending := make(chan struct{})
	var writers sync.WaitGroup
	for range 2 * maxConns {
		writers.Go(func() {
			for {
				c, err := net.Dial("unix", a.socket)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range len(full) - 1 {
					if _, err := c.Write(full[i : i+1]); err != nil {
						break // it had to give way
					}
					select {
					case <-ending:
						c.Close()
						return
					case <-time.After(5 * time.Millisecond):
					}
				}
				c.Close()
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), floodPatience)
	defer cancel()
	for range 20 {
		if resp, err := Call(ctx, a.socket, request("ADD"), -1); err != nil || resp.Error != nil {
			t.Errorf("an honest request among slow ones: %v, %v", resp.Error, err)
		}
	}
	close(ending)
	writers.Wait()
}

// A request that is being handled gives way to nobody.
func TestAHandledRequestDoesNotGiveWay(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	a := serve(t, func(ctx context.Context, r *Request, _ int) (json.RawMessage, error) {
		if r.Command != "ADD" {
			return nil, nil
		}
		close(begun)
		<-release
		return nil, ctx.Err()
	})
	done := make(chan error, 1)
	go func() {
		resp, err := Call(context.Background(), a.socket, request("ADD"), -1)
		if resp.Error != nil {
			err = resp.Error
		}
		done <- err
	}()
	<-begun
	_, wait := flood(t, a.socket, 2*maxConns)
	wait()
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the request that was being handled: %v", err)
	}
}

// The log says who asked wrongly, and what was wrong, once for each.
func TestTheLogNamesTheClient(t *testing.T) {
	needRoot(t)
	var text bytes.Buffer
	a := &agent{socket: t.TempDir() + "/cni.sock", log: slog.New(slog.NewTextHandler(&text, nil))}
	a.serveAgain(t, answerOK)
	c := dial(t, a.socket)
	if _, err := c.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if resp, err := readResponse(c); err != nil || resp.Error == nil {
		t.Errorf("garbage was answered with %+v, %v", resp, err)
	}
	a.stop() // and the log is ours
	for _, want := range []string{fmt.Sprintf("pid=%d", os.Getpid()), "bytes announced, at most"} {
		if strings.Count(text.String(), want) != 1 {
			t.Errorf("the log doesn't say %q once:\n%s", want, text.String())
		}
	}
}

// Whatever bytes and descriptors come in which order: one descriptor at most is handed out, none stays open.
func FuzzReceive(f *testing.F) {
	r := request("ADD")
	r.Version = Version
	whole, err := encode(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, uint16(4), uint8(1), uint8(0))
	f.Add(whole, uint16(1), uint8(1), uint8(3))
	f.Add(whole, uint16(0), uint8(0), uint8(2))
	f.Add(whole[:9], uint16(9), uint8(2), uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16, early, late uint8) {
		first := min(int(cut), len(b))
		conn, client := pair(t)
		defer conn.Close()
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pipe[0])
		go func() {
			defer client.Close()
			defer unix.Close(pipe[1])
			for _, part := range []struct {
				data []byte
				fds  uint8
			}{{b[:first], early}, {b[first:], late}} {
				fds := make([]int, part.fds%8)
				for i := range fds {
					fds[i] = pipe[1]
				}
				if len(part.data) > 0 {
					_, _, _ = client.WriteMsgUnix(part.data, unix.UnixRights(fds...), nil) // the reader may have gone
				}
			}
		}()
		req, fd, err := receive(conn)
		if (err == nil) != (req != nil) || err != nil && fd >= 0 {
			t.Fatalf("request %v and descriptor %d with error %v", req, fd, err)
		}
		closeFD(fd)
		conn.Close()
		requireNoWriter(t, pipe[0])
	})
}

// pair is a connection's two ends.
func pair(t *testing.T) (server, client *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(file)
		if err := errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// requireNoWriter waits for the hang-up that a pipe reports when its last writing descriptor is closed; those
// in messages that nobody received are closed by the kernel's garbage collection.
func requireNoWriter(t *testing.T, fd int) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd)}}
	for {
		n, err := unix.Poll(p, int(floodPatience.Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			t.Fatal(err)
		case n == 0 || p[0].Revents&unix.POLLHUP == 0:
			t.Fatal("a descriptor was left open")
		default:
			return
		}
	}
}
