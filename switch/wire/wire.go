// Package wire reads and writes protocol headers in place. Every header is a
// view, a named []byte whose first byte is the header's first byte: Ethernet,
// ARP, IPv4, IPv6, UDP, TCP, ICMPv4, ICMPv6, neighbour discovery, VXLAN and
// the virtio-net header. The contract is the same for all of them: bytes are
// hostile until IsValid (or Parse, for a whole frame) returned true, and only
// then may getters and setters be called; Encode needs a buffer of XLen (or
// XMinLen) bytes and writes every one of them. Numbers are in host order at the
// interface and in network order in the bytes. A view owns nothing: it is as
// safe for concurrent use as the buffer that it looks at. String may be called on
// any bytes. Parse is the hot path's one pass over a frame; Parsed is its result.
package wire

import "fmt"

// invalid is the text of a view whose IsValid is false.
func invalid(name string, b []byte) string {
	return fmt.Sprintf("%s invalid (%d bytes)", name, len(b))
}
