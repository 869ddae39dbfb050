package podapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxRequests bounds the requests handled at once; further ones wait. Kubelet starts a few pods at a time,
	// a runtime's restart deletes dozens.
	maxRequests = 64
	// maxConns bounds the open connections, with their descriptors and up to MaxMessage of memory each;
	// further ones wait in the listener's backlog.
	maxConns = 256
	// askGrace is how long a connection without a whole request may keep others waiting when maxConns are
	// open: a plugin writes its request right after it has connected. So 10,000 half-open connections hold
	// the next request up for 10,000 / maxConns * askGrace = 2 s, and not for ioTimeout each.
	askGrace = 50 * time.Millisecond
	// ioTimeout is how long a plugin may take to send its request or to take its answer: it has both
	// at hand.
	ioTimeout = 10 * time.Second
	// acceptPause spares the processor when accept fails for want of descriptors.
	acceptPause = 100 * time.Millisecond
)

// Handler answers requests. netns is the pod's namespace or -1; it is closed after the return. ctx ends when
// the plugin hangs up or the agent stops. An *Error decides the code that the runtime sees. Handle is called
// from many goroutines.
type Handler interface {
	Handle(ctx context.Context, req *Request, netns int) (result json.RawMessage, err error)
}

// Server is the agent's side of the socket. Log may be nil.
type Server struct {
	Handler Handler
	Log     *slog.Logger
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.Default()
	}
	return s.Log
}

// Serve handles the tombstones beside the unix socket that l listens on, then requests until ctx ends; then
// it closes l, waits for the requests that it has begun, and returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if err := s.replayTombstones(ctx, TombstoneDir(l.Addr().String())); err != nil {
		s.log().Error("DELs that came while the agent was down", "err", err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	var begun sync.WaitGroup
	defer begun.Wait()
	open := newConns()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		case err != nil:
			s.log().Error("accept on the CNI socket", "socket", l.Addr().String(), "err", err)
			time.Sleep(acceptPause)
		case !open.enter(ctx):
			conn.Close()
			return nil
		default:
			begun.Go(func() {
				defer open.leave()
				s.serve(ctx, open, conn.(*net.UnixConn), TombstoneDir(l.Addr().String()))
			})
		}
	}
}

func (s *Server) serve(ctx context.Context, open *conns, conn *net.UnixConn, tombstones string) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(ioTimeout))
	pid, err := checkPeer(conn)
	var result json.RawMessage
	if err == nil {
		result, err = s.answer(ctx, open, conn, tombstones)
	}
	resp := Response{Result: result}
	if err != nil {
		s.log().Warn("CNI request failed", "pid", pid, "err", err)
		resp = Response{Error: AsError(err)}
	}
	msg, err := encode(resp)
	if err == nil {
		conn.SetWriteDeadline(time.Now().Add(ioTimeout))
		_, err = conn.Write(msg)
	}
	if err != nil {
		s.log().Warn("CNI answer not delivered; the runtime will send DEL", "err", err)
	}
}

func (s *Server) answer(ctx context.Context, open *conns, conn *net.UnixConn, tombstones string) (json.RawMessage, error) {
	// A stop does not wait for a plugin that is slow to ask.
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	a := open.ask(conn)
	req, netns, err := receive(conn)
	if open.asked(a) && errors.Is(err, os.ErrDeadlineExceeded) {
		err = Errorf(CodeTryAgain, "%d connections were open, and of those without a whole request this one for the longest; try again", maxConns)
	}
	if err != nil {
		return nil, err
	}
	defer closeFD(netns)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn.SetReadDeadline(time.Time{})
	go func() { // a plugin says no more, so whatever ends the read is its end; or ours, which closes conn
		conn.Read(make([]byte, 1))
		cancel()
	}()
	result, err := open.handle(ctx, s.Handler, req, netns)
	switch {
	case req.Command == "GC":
		err = errors.Join(err, s.replayTombstones(ctx, tombstones))
	case err == nil && (req.Command == "DEL" || req.Command == "ADD"): // after an ADD the name is another pod's
		err = removeTombstone(tombstones, req)
	}
	return result, err
}

// checkPeer returns the peer's process, and refuses one that isn't root in the agent's user namespace,
// whatever the socket's mode is.
func checkPeer(conn *net.UnixConn) (pid int32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read the peer's credentials: %w", err)
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		return 0, fmt.Errorf("read the peer's credentials: %w", err)
	}
	if cred.Uid != 0 {
		return cred.Pid, Errorf(CodeInternal, "process %d of user %d asked; only root may", cred.Pid, cred.Uid)
	}
	return cred.Pid, nil
}
