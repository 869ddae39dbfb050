package podapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type handlerFunc func(context.Context, *Request, int) (json.RawMessage, error)

func (f handlerFunc) Handle(ctx context.Context, r *Request, netns int) (json.RawMessage, error) {
	return f(ctx, r, netns)
}

// agent is a Server on a socket of its own.
type agent struct {
	socket string
	log    *slog.Logger // nil discards
	stop   func()       // and wait
}

func serve(t *testing.T, h handlerFunc) *agent {
	t.Helper()
	a := &agent{socket: filepath.Join(t.TempDir(), "cni.sock")}
	a.serveAgain(t, h)
	return a
}

func (a *agent) serveAgain(t *testing.T, h handlerFunc) {
	t.Helper()
	needRoot(t)
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	log := a.log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	go func() { ended <- (&Server{Handler: h, Log: log}).Serve(ctx, l) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(a.stop)
}

// needRoot is for whatever a Server is to answer.
func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("NETNS_REQUIRED") == "1":
		t.Fatal("the server answers root only: run the tests as root")
	default:
		t.Skip("the server answers root only: run the tests as root")
	}
}

func request(command string) Request {
	return Request{Command: command, ContainerID: "c1", IfName: "eth0", Stdin: json.RawMessage(`{}`)}
}

func answerOK(context.Context, *Request, int) (json.RawMessage, error) {
	return json.RawMessage(`{}`), nil
}

func inodeOf(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Errorf("fstat(%d): %v", fd, err)
	}
	return st.Ino
}

func TestCall(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var got Request
	var ino uint64
	a := serve(t, func(_ context.Context, r *Request, netns int) (json.RawMessage, error) {
		got, ino = *r, 0
		if netns >= 0 {
			ino = inodeOf(t, netns)
		}
		switch r.Command {
		case "coded":
			return nil, fmt.Errorf("do it: %w", &Error{Code: 11, Msg: "later", Details: "much later"})
		case "plain":
			return nil, errors.New("broken")
		}
		return r.Stdin, nil
	})
	ctx := context.Background()
	for _, stdin := range []string{`{"a":[1,2,3]}`, `"` + strings.Repeat("x", MaxMessage-4096) + `"`} {
		want := Request{Version: Version, Command: "ADD", ContainerID: "c1", IfName: "net1", Netns: "/run/netns/x",
			Args: "A=B", Path: "/opt/cni/bin", Stdin: json.RawMessage(stdin)}
		resp, err := Call(ctx, a.socket, want, int(file.Fd()))
		if err != nil || resp.Error != nil || string(resp.Result) != stdin {
			t.Fatalf("answer of %d bytes, %v, %v", len(resp.Result), resp.Error, err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || ino != inodeOf(t, int(file.Fd())) {
			t.Errorf("the handler got %.200v with inode %d", got, ino)
		}
	}
	if _, err := Call(ctx, a.socket, request("DEL"), -1); err != nil || ino != 0 {
		t.Errorf("without a descriptor: %v, inode %d", err, ino)
	}
	for command, want := range map[string]Error{"coded": {11, "do it: later", "much later"}, "plain": {CodeInternal, "broken", ""}} {
		resp, err := Call(ctx, a.socket, request(command), -1)
		if err != nil || resp.Error == nil || *resp.Error != want {
			t.Errorf("%s: %v, %v; want %v", command, resp.Error, err, want)
		}
	}
}

func TestAgentDown(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "no.sock")
	refusing := serve(t, answerOK)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: absent + "2", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	os.Rename(absent+"2", refusing.socket)
	dying := filepath.Join(t.TempDir(), "dying.sock")
	d, err := net.Listen("unix", dying)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	go func() {
		for n := 0; ; n++ {
			c, err := d.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, n)) // dies before, while and after it reads
			c.Close()
		}
	}()
	for _, socket := range []string{absent, refusing.socket, dying, dying, dying} {
		_, err := Call(context.Background(), socket, request("ADD"), -1)
		if !errors.Is(err, ErrAgentDown) || !strings.Contains(err.Error(), socket) {
			t.Errorf("%s: %v, want ErrAgentDown and the path", socket, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	silent := serve(t, func(ctx context.Context, _ *Request, _ int) (json.RawMessage, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if _, err := Call(ctx, silent.socket, request("ADD"), -1); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrAgentDown) {
		t.Errorf("a silent agent: %v, want the deadline alone", err)
	}
}

func message(t *testing.T, v any) []byte {
	t.Helper()
	b, err := encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func dial(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Whatever a client sends, it gets an error, no descriptor of it stays, and the next client is served.
func TestHostileClients(t *testing.T) {
	good := request("ADD")
	good.Version = Version
	old := good
	old.Version = Version + 1
	badID, badIf := good, good
	badID.ContainerID, badIf.IfName = "../../etc", "a/b"
	rights := func(n int) []byte { return unix.UnixRights(make([]int, n)...) } // n times standard input
	type part struct{ data, oob []byte }
	full := message(t, good)
	for name, c := range map[string]struct {
		parts []part
		want  string // in the error; "" is success
	}{
		"one descriptor":              {[]part{{full, rights(1)}}, ""},
		"byte by byte":                {[]part{{full[:1], rights(1)}, {full[1:5], nil}, {full[5:], nil}}, ""},
		"late descriptors":            {[]part{{full[:2], rights(1)}, {full[2:9], rights(3)}, {full[9:], rights(200)}}, ""},
		"two descriptors":             {[]part{{full, rights(2)}}, "more than one descriptor"},
		"three descriptors":           {[]part{{full, rights(3)}}, "more than one descriptor"},
		"200 descriptors":             {[]part{{full, rights(200)}}, "more than one descriptor"},
		"garbage":                     {[]part{{[]byte("GET / HTTP/1.0\r\n\r\n"), rights(1)}}, "bytes announced"},
		"oversized":                   {[]part{{binary.BigEndian.AppendUint32(nil, MaxMessage+1), rights(1)}}, "1048577 bytes announced, at most 1048576"},
		"no JSON":                     {[]part{{append(binary.BigEndian.AppendUint32(nil, 4), "]{]{"...), rights(1)}}, "decode request"},
		"empty":                       {[]part{{make([]byte, 4), rights(1)}}, "decode request"},
		"nested":                      {[]part{{append(binary.BigEndian.AppendUint32(nil, 20000), bytes.Repeat([]byte("["), 20000)...), nil}}, "decode request"},
		"hung up in the length":       {[]part{{full[:3], rights(1)}}, "EOF"},
		"hung up in the body":         {[]part{{full[:40], rights(1)}}, "EOF"},
		"another protocol version":    {[]part{{message(t, old), rights(1)}}, "of one release"},
		"a container id with slashes": {[]part{{message(t, badID), rights(1)}}, "CNI_CONTAINERID"},
		"an interface with a slash":   {[]part{{message(t, badIf), rights(1)}}, "CNI_IFNAME"},
	} {
		t.Run(name, func(t *testing.T) {
			a := serve(t, answerOK)
			before := openFDs(t)
			conn := dial(t, a.socket)
			for _, p := range c.parts {
				if _, _, err := conn.WriteMsgUnix(p.data, p.oob, nil); err != nil && !errors.Is(err, unix.EPIPE) {
					t.Fatal(err)
				}
			}
			conn.CloseWrite()
			resp, err := readResponse(conn)
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" && resp.Error != nil || c.want != "" && (resp.Error == nil || !strings.Contains(resp.Error.Msg, c.want)) {
				t.Errorf("answer %+v, want %q", resp.Error, c.want)
			}
			conn.Close()
			a.stop()                                    // what it still has open at its end, it has leaked; its listener is closed too
			deadline := time.Now().Add(5 * time.Second) // the listener's own may be closed by another goroutine
			for openFDs(t) != before-1 && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			if after := openFDs(t); after != before-1 {
				t.Errorf("%d descriptors before, %d after", before-1, after)
			}
		})
	}
}

// Half-open connections delay neither others nor the end.
func TestHalfOpenConnections(t *testing.T) {
	a := serve(t, answerOK)
	for range maxConns - 1 {
		c := dial(t, a.socket)
		c.WriteMsgUnix([]byte{0}, unix.UnixRights(0), nil)
	}
	if _, err := Call(context.Background(), a.socket, request("ADD"), -1); err != nil {
		t.Error(err)
	}
	a.stop()
}

func TestConcurrencyIsBounded(t *testing.T) {
	var now, most, total atomic.Int32
	full := make(chan struct{})
	fill := sync.OnceFunc(func() { close(full) })
	a := serve(t, func(context.Context, *Request, int) (json.RawMessage, error) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		total.Add(1)
		if n == maxRequests {
			fill()
		}
		<-full
		now.Add(-1)
		return json.RawMessage(`{}`), nil
	})
	const calls = maxRequests + 40
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() {
			if _, err := Call(context.Background(), a.socket, request("ADD"), -1); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() != maxRequests || total.Load() != calls {
		t.Errorf("at most %d at once and %d in all, want %d and %d", most.Load(), total.Load(), maxRequests, calls)
	}
}

// A plugin that is killed must not leave its ADD running on.
func TestHangUpEndsTheRequest(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	a := serve(t, func(ctx context.Context, _ *Request, _ int) (json.RawMessage, error) {
		close(begun)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	r := request("ADD")
	r.Version = Version
	c := dial(t, a.socket)
	c.Write(message(t, r))
	<-begun
	c.Close()
	<-ended
}

// Credentials belong to threads, so one that ends with its goroutine may become nobody.
func TestOnlyRootMayAsk(t *testing.T) {
	dir, err := os.MkdirTemp("", "podapi")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	a := &agent{socket: filepath.Join(dir, "cni.sock")}
	a.serveAgain(t, func(context.Context, *Request, int) (json.RawMessage, error) {
		t.Error("the request reached the handler")
		return nil, nil
	})
	defer a.stop()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(a.socket, 0o777)); err != nil {
		t.Fatal(err)
	}
	fd := make(chan int)
	go func() {
		runtime.LockOSThread() // for good
		fd <- connectAs(65534, a.socket)
	}()
	f := os.NewFile(uintptr(<-fd), "socket")
	defer f.Close()
	resp, err := readResponse(f)
	if err != nil || resp.Error == nil || !strings.Contains(resp.Error.Msg, "user 65534") {
		t.Errorf("answer %v, %v; want a refusal that names the user", resp.Error, err)
	}
}

func connectAs(uid uintptr, socket string) int {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return -1
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil || unix.Connect(fd, &unix.SockaddrUnix{Name: socket}) != nil {
		return -1
	}
	return fd
}
