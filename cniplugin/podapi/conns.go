package podapi

import (
	"context"
	"encoding/json"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// conns bounds the open connections and the requests that are handled. When there are maxConns, a new one
// waits until another ends, and those whose request isn't whole are ended for it, the oldest first: a whole
// request never is.
type conns struct {
	slots    chan struct{} // one for each open connection
	handling chan struct{} // one for each request that is handled

	mu     sync.Mutex
	asking []*asking // the oldest first
}

// asking is a connection whose request isn't whole yet.
type asking struct {
	conn  *net.UnixConn
	since time.Time
	ended bool // for another; guarded by conns.mu
}

func newConns() *conns {
	return &conns{slots: make(chan struct{}, maxConns), handling: make(chan struct{}, maxRequests)}
}

// enter waits for a place, which leave gives back. It returns false when ctx ends first.
func (c *conns) enter(ctx context.Context) bool {
	select {
	case c.slots <- struct{}{}:
		return true
	default:
	}
	for {
		select {
		case c.slots <- struct{}{}:
			return true
		case <-ctx.Done():
			return false
		case <-time.After(c.makeRoom()):
		}
	}
}

func (c *conns) leave() { <-c.slots }

// makeRoom ends the oldest connection that asks for longer than askGrace and has nothing for us to read, or
// it would be us who are slow. It returns how long to wait for that before the next one's turn.
func (c *conns) makeRoom() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, a := range c.asking {
		if left := askGrace - time.Since(a.since); left > 0 {
			return left
		}
		if !readable(a.conn) {
			a.ended = true
			a.conn.SetReadDeadline(time.Unix(1, 0)) // a time long past
			c.asking = slices.Delete(c.asking, i, i+1)
			return askGrace
		}
	}
	return askGrace
}

// readable says whether the client has sent something that we haven't read.
func readable(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var n int
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ = unix.Poll(p, 0)
	})
	return err == nil && n > 0
}

// ask notes a connection that has begun to ask.
func (c *conns) ask(conn *net.UnixConn) *asking {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &asking{conn: conn, since: time.Now()}
	c.asking = append(c.asking, a)
	return a
}

// asked notes that the connection is done with asking, and says whether it was ended for another.
func (c *conns) asked(a *asking) (ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.asking, a); i >= 0 {
		c.asking = slices.Delete(c.asking, i, i+1)
	}
	return a.ended
}

// handle has the request handled when its turn comes, unless ctx ends while it waits for that.
func (c *conns) handle(ctx context.Context, h Handler, req *Request, netns int) (json.RawMessage, error) {
	select {
	case c.handling <- struct{}{}:
	default:
		select {
		case c.handling <- struct{}{}:
		case <-ctx.Done():
			return nil, Errorf(CodeTryAgain, "%d requests were being handled, and this one's time was over before its turn: %v", maxRequests, ctx.Err())
		}
	}
	defer func() { <-c.handling }()
	return h.Handle(ctx, req, netns)
}
