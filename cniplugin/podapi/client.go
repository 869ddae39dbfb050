package podapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Call sends a request to the agent at socket and waits for the answer until ctx ends. netns is the pod's
// network namespace, or -1; it stays the caller's. req.Version is filled in. A failure that the agent
// reports is in the Response; the error is about reaching it.
func Call(ctx context.Context, socket string, req Request, netns int) (Response, error) {
	req.Version = Version
	resp, err := call(ctx, socket, req, netns)
	if err == nil {
		return resp, nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", ctx.Err(), err)
	} else if isDown(err) {
		err = fmt.Errorf("%w (%w)", ErrAgentDown, err)
	}
	return Response{}, fmt.Errorf("ask the agent at %s: %w", socket, err)
}

// isDown tells an agent that is absent, or was killed while it served us, from other failures.
func isDown(err error) bool {
	for _, sign := range []error{unix.ENOENT, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, sign) {
			return true
		}
	}
	return false
}

func call(ctx context.Context, socket string, req Request, netns int) (resp Response, err error) {
	msg, err := encode(req)
	if err != nil {
		return resp, err
	}
	conn, err := dialAgent(ctx, socket)
	if err != nil {
		return resp, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })() // a time long past
	if err := send(conn, msg, netns); err != nil {
		return resp, err
	}
	return readResponse(conn)
}

// dialAgent waits for room in the listener's backlog, which a non-blocking connect does not.
func dialAgent(ctx context.Context, socket string) (*net.UnixConn, error) {
	for {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return c.(*net.UnixConn), nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(askGrace):
		}
	}
}

// send writes the length with the descriptor and then the rest, because a long message takes several
// writes and the descriptor must go out once.
func send(conn *net.UnixConn, msg []byte, netns int) error {
	var rights []byte
	if netns >= 0 {
		rights = unix.UnixRights(netns)
	}
	n, _, err := conn.WriteMsgUnix(msg[:lengthPrefixSize], rights, nil)
	if err == nil {
		_, err = conn.Write(msg[n:])
	}
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil // an agent that refuses us answers before it has read everything, and the answer says why
	}
	return err
}

func readResponse(r io.Reader) (resp Response, err error) {
	var prefix [lengthPrefixSize]byte
	if _, err = io.ReadFull(r, prefix[:]); err != nil {
		return resp, fmt.Errorf("read answer: %w", err)
	}
	body, err := readBody(r, prefix)
	if err != nil {
		return resp, err
	}
	if err = json.Unmarshal(body, &resp); err != nil {
		return Response{}, fmt.Errorf("decode answer: %w", err)
	}
	return resp, nil
}
