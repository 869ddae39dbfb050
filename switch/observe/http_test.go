package observe

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// floodPatience is long beside a flood that gives way, 2 s.
const floodPatience = 2 * time.Minute

// serveAdmin serves what needs no switch, on a socket of its own.
func serveAdmin(t *testing.T) (c Client, stop func()) {
	t.Helper()
	c.Socket = filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- new(Source).Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

func requireReady(t *testing.T, c Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), floodPatience)
	defer cancel()
	if b, err := c.Raw(ctx, "ready"); err != nil || string(b) != "ready\n" {
		t.Errorf("an honest request: %q, %v", b, err)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Whatever a client sends, others are answered, and no descriptor of it stays.
func TestHostileAdminClients(t *testing.T) {
	for name, parts := range map[string][]string{
		"garbage":                 {"\x00\xff\x16\x03\x01", "\r\n\r\n"},
		"nothing":                 {},
		"hung up in the line":     {"GET /v1/rea"},
		"hung up in a header":     {"GET /v1/ready HTTP/1.1\r\nHost: a\r\nX: "},
		"a huge header":           {"GET /v1/ready HTTP/1.1\r\nX: ", strings.Repeat("x", 1<<20)},
		"a huge line":             {"GET /", strings.Repeat("x", 1<<20)},
		"a huge body":             {"GET /v1/ready HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n", strings.Repeat("x", 1<<20)},
		"an endless body":         {"POST /v1/ready HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", strings.Repeat("1\r\nx\r\n", 1<<18)},
		"a body that never comes": {"POST /v1/ready HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"},
		"pipelined":               {strings.Repeat("GET /v1/ready HTTP/1.1\r\nHost: a\r\n\r\n", 1000)},
		"CONNECT":                 {"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"},
		"HTTP/2":                  {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c, stop := serveAdmin(t)
			before := openFDs(t) - 1 // without the listener
			conn, err := net.Dial("unix", c.Socket)
			if err != nil {
				t.Fatal(err)
			}
			var reading sync.WaitGroup
			reading.Go(func() { _, _ = io.Copy(io.Discard, conn) }) // or both ends would wait for each other
			for _, p := range parts {
				// An error means that the server has had enough.
				_, _ = conn.Write([]byte(p))
			}
			requireReady(t, c)
			conn.Close()
			reading.Wait()
			stop()
			requireFDs(t, before)
		})
	}
}

// requireFDs waits for the server's goroutines, which close their connections by themselves.
func requireFDs(t *testing.T, want int) {
	t.Helper()
	deadline := time.Now().Add(floodPatience)
	for openFDs(t) > want {
		if time.Now().After(deadline) {
			t.Errorf("%d descriptors, %d before", openFDs(t), want)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// Ten thousand connections that never ask delay nobody for long.
func TestAFloodOfAdminConnectionsGivesWay(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	n := int(min(10_000, limit.Cur*3/4))
	c, stop := serveAdmin(t)
	before := openFDs(t) - 1
	held := make([]net.Conn, 0, n)
	begun := make(chan struct{}) // closed when half of them are there, or no more come
	half := sync.OnceFunc(func() { close(begun) })
	var flooding sync.WaitGroup
	flooding.Go(func() {
		defer half()
		ctx, cancel := context.WithTimeout(context.Background(), floodPatience)
		defer cancel()
		for i := range n {
			if i == n/2 {
				half()
			}
			conn, err := dial(ctx, c.Socket)
			if err != nil {
				t.Errorf("connection %d of the flood: %v", i, err)
				return
			}
			held = append(held, conn)
			// It may have had to give way already.
			if _, err := conn.Write([]byte("GET /v1/re")); err != nil && !errors.Is(err, unix.EPIPE) {
				t.Error(err)
			}
		}
	})
	<-begun
	requireReady(t, c)
	flooding.Wait()
	requireReady(t, c)
	if most := before + 1 + n + maxConns + 1; openFDs(t) > most {
		t.Errorf("%d descriptors, at most %d", openFDs(t), most)
	}
	for _, conn := range held {
		conn.Close()
	}
	stop()
	requireFDs(t, before)
}
