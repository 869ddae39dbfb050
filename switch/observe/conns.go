package observe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// maxConns bounds the descriptors that clients can take from the switch, which needs one for each pod.
	maxConns = 256
	// connGrace is how long a connection may keep others waiting when maxConns are open; answers take
	// milliseconds. 10,000 half-open connections hold the next one up for 10,000 / maxConns * connGrace = 2 s.
	connGrace = 50 * time.Millisecond
)

// conns bounds the open connections of a server: the oldest one ends for a new one.
type conns struct {
	mu   sync.Mutex
	open []opened // the oldest first
}

type opened struct {
	conn  net.Conn
	since time.Time
}

// track is the server's ConnState. For a new connection it is called where connections are accepted, so
// that waiting there leaves the next ones in the listener's backlog.
func (c *conns) track(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		for wait := c.add(conn); wait > 0; wait = c.add(conn) {
			time.Sleep(wait)
		}
	case http.StateClosed, http.StateHijacked:
		c.remove(conn)
	}
}

// add notes the connection if there is room, or makes room by ending the oldest one; if that is younger than
// connGrace, it returns how long to wait for that.
func (c *conns) add(conn net.Conn) (wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) == maxConns {
		oldest := c.open[0]
		if left := connGrace - time.Since(oldest.since); left > 0 {
			return left
		}
		oldest.conn.Close()
		c.open = c.open[1:]
	}
	c.open = append(c.open, opened{conn, time.Now()})
	return 0
}

func (c *conns) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = slices.DeleteFunc(c.open, func(o opened) bool { return o.conn == conn })
}

// dial waits for room in the listener's backlog, which a non-blocking connect does not.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(connGrace):
		}
	}
}
