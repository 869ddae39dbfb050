package encap

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// holderOf says for an error message who has bound the UDP address, or one that includes it: "ovs-vswitchd
// (pid 812)". It reads proc(5) for the calling thread's network namespace.
func holderOf(local netip.AddrPort) string {
	inodes := socketInodes(local)
	if len(inodes) == 0 {
		return "a socket that is gone by now"
	}
	if p := processWith(inodes); p != "" {
		return p
	}
	return "the kernel (a vxlan device? 'ip -d link show type vxlan') or a process that isn't visible from here (in a container?)"
}

// socketInodes returns the sockets bound to local or to its port at all addresses, as proc(5) names them:
// "socket:[4711]".
func socketInodes(local netip.AddrPort) map[string]bool {
	inodes := map[string]bool{}
	for _, table := range []string{"udp", "udp6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			continue // no IPv6 in this kernel
		}
		for line := range strings.Lines(string(text)) {
			// "  28: 0100007F:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 20563 ..."
			fields := strings.Fields(line)
			if len(fields) > 9 && covers(fields[1], local) {
				inodes["socket:["+fields[9]+"]"] = true
			}
		}
	}
	return inodes
}

// covers says whether bound, an address and port as in /proc/net/udp, conflicts with local.
func covers(bound string, local netip.AddrPort) bool {
	address, port, _ := strings.Cut(bound, ":")
	if port != fmt.Sprintf("%04X", local.Port()) {
		return false
	}
	mapped := local.Addr().As16()
	return strings.Trim(address, "0") == "" || address == procHex(local.Addr().AsSlice()) || address == procHex(mapped[:])
}

// procHex returns an address as proc(5) shows it: 32-bit words of the machine's byte order.
func procHex(address []byte) string {
	var s strings.Builder
	for ; len(address) > 0; address = address[4:] {
		fmt.Fprintf(&s, "%08X", binary.NativeEndian.Uint32(address))
	}
	return s.String()
}

// processWith returns the name and number of a process that has one of the sockets open, or "".
func processWith(inodes map[string]bool) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is well formed
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || !inodes[target] {
			continue // closed meanwhile, or another file
		}
		process := filepath.Dir(filepath.Dir(link))
		name, _ := os.ReadFile(filepath.Join(process, "comm")) // empty if the process has ended
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), filepath.Base(process))
	}
	return ""
}
