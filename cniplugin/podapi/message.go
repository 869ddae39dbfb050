package podapi

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// encode returns a message: length and JSON.
func encode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxMessage {
		return nil, fmt.Errorf("encode message: %d bytes, at most %d", len(body), MaxMessage)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...), nil
}

// readBody reads the JSON that the length announces. Memory grows with what has arrived, not with what
// was announced.
func readBody(r io.Reader, prefix [lengthPrefixSize]byte) ([]byte, error) {
	n := binary.BigEndian.Uint32(prefix[:])
	if n > MaxMessage {
		return nil, fmt.Errorf("read message: %d bytes announced, at most %d", n, MaxMessage)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	if len(body) < int(n) {
		return nil, fmt.Errorf("read message: %d of %d bytes: %w", len(body), n, io.ErrUnexpectedEOF)
	}
	return body, nil
}

// decodeRequest reads the JSON of a request and refuses what no plugin of this release sends.
func decodeRequest(body []byte) (*Request, error) {
	var req Request
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, Errorf(CodeDecode, "decode request: %v", err)
	}
	if req.Version != Version {
		return nil, Errorf(CodeInternal, "the plugin speaks version %d of the socket's protocol, the agent %d: install tapyard-cni and tapyard of one release", req.Version, Version)
	}
	if !req.aboutPod() {
		req.ContainerID, req.IfName = "", ""
	} else if err := CheckNames(req.ContainerID, req.IfName); err != nil {
		return nil, err
	}
	return &req, nil
}

// receive reads a request and the descriptor that came with it, or -1. The descriptor is the caller's,
// none is left open after an error.
func receive(conn *net.UnixConn) (*Request, int, error) {
	var prefix [lengthPrefixSize]byte
	n, fd, err := readRights(conn, prefix[:])
	if err != nil {
		return nil, -1, err
	}
	// From here on plain reads: descriptors that come late are closed by the kernel.
	req, err := receiveRest(conn, prefix, n)
	if err != nil {
		closeFD(fd)
		return nil, -1, err
	}
	return req, fd, nil
}

func receiveRest(conn *net.UnixConn, prefix [lengthPrefixSize]byte, n int) (*Request, error) {
	if _, err := io.ReadFull(conn, prefix[n:]); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	body, err := readBody(conn, prefix)
	if err != nil {
		return nil, err
	}
	return decodeRequest(body)
}

// readRights reads the first bytes of a message and at most one descriptor.
func readRights(conn *net.UnixConn, b []byte) (n, fd int, err error) {
	oob := make([]byte, unix.CmsgSpace(4)) // alignment makes it long enough for two
	n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
	fds, perr := parseRights(oob[:oobn])
	switch {
	case err != nil:
		err = fmt.Errorf("read message: %w", err)
	case n == 0:
		err = fmt.Errorf("read message: %w", io.EOF)
	case perr != nil:
		err = fmt.Errorf("read descriptor: %w", perr)
	case len(fds) > 1 || flags&unix.MSG_CTRUNC != 0:
		err = Errorf(CodeInternal, "more than one descriptor came with a request")
	case len(fds) == 1:
		return n, fds[0], nil
	default:
		return n, -1, nil
	}
	for _, fd := range fds {
		closeFD(fd)
	}
	return n, -1, err
}

func parseRights(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	for _, m := range msgs {
		got, perr := unix.ParseUnixRights(&m)
		if perr != nil {
			err = perr
		}
		fds = append(fds, got...)
	}
	return fds, err
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}
