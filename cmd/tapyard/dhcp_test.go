package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
)

// serveDHCP answers every client on the server's segment with the same lease, by RFC 2131, until the socket is
// closed.
func serveDHCP(conn *net.UDPConn, server, lease net.IP) {
	const discover, offer, request, ack = 1, 2, 3, 5
	for b := make([]byte, 1500); ; {
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		kind := map[byte]byte{discover: offer, request: ack}[dhcpType(b[:n])]
		if kind == 0 {
			continue
		}
		reply := make([]byte, 240)
		reply[0], reply[1], reply[2] = 2, 1, 6 // BOOTREPLY over Ethernet
		copy(reply[4:8], b[4:8])               // xid
		copy(reply[16:20], lease)
		copy(reply[20:24], server)   // siaddr
		copy(reply[28:44], b[28:44]) // chaddr
		copy(reply[236:], dhcpMagic)
		reply = append(reply, 53, 1, kind, 54, 4)
		reply = append(append(reply, server...), 51, 4)
		reply = append(binary.BigEndian.AppendUint32(reply, 3600), 1, 4, 255, 255, 255, 0, 3, 4)
		reply = append(append(reply, server...), 255)
		broadcast := net.IPv4(server[0], server[1], server[2], 255)
		conn.WriteTo(reply, &net.UDPAddr{IP: broadcast, Port: 68})
	}
}

var dhcpMagic = []byte{0x63, 0x82, 0x53, 0x63}

// dhcpType returns the value of option 53, 0 if there is none.
func dhcpType(b []byte) byte {
	if len(b) < 240 || !bytes.Equal(b[236:240], dhcpMagic) {
		return 0
	}
	for o := b[240:]; len(o) > 2 && o[0] != 255; o = o[min(len(o), 2+int(o[1])):] {
		if o[0] == 53 {
			return o[2]
		}
	}
	return 0
}

// The plugin dhcp asks a server on the pod's segment, through the switch, before the pod has an address.
func TestLeaseFromTheSegment(t *testing.T) {
	n := newChains(t)
	stop := n.start()
	defer func() { stop(syscall.SIGTERM) }()
	socket := filepath.Join(n.dir, "dhcp.sock")
	daemon := exec.Command(filepath.Join(nstest.CNIPlugins(t), "dhcp"), "daemon", "-socketpath", socket, "-pidfile", filepath.Join(n.dir, "dhcp.pid"))
	daemon.Stderr = t.Output()
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	eventually(t, "the DHCP daemon listens", func() bool { _, err := os.Stat(socket); return err == nil })

	server := nstest.New(t)
	s := n.mustAdd(n.chain("server", `, "network": "green", "ipam": {"type": "static", "addresses": [{"address": "172.16.0.1/24"}]}`), server, "server", "eth0", nil)
	server.Do(t, func() {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 67})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		go serveDHCP(conn, net.IPv4(172, 16, 0, 1).To4(), net.IPv4(172, 16, 0, 50).To4())
	})
	lease := func(network string) *libcni.NetworkConfigList {
		return n.chain("leased", fmt.Sprintf(`%s, "ipam": {"type": "dhcp", "daemonSocketPath": %q}`, network, socket))
	}
	p := n.mustAdd(lease(`, "network": "green"`), n.pod, "leased", "eth0", nil)
	if p.addr(0) != netip.MustParseAddr("172.16.0.50") {
		t.Errorf("leased %v", p.IPs)
	}
	n.mustReach(n.pod, server, hostPort(s.addr(0), 80), netip.AddrPort{}, p.addr(0))
	n.mustReach(server, n.pod, hostPort(p.addr(0), 80), netip.AddrPort{}, s.addr(0))
	awaitRelease := sniffRelease(t, server)
	p.del()
	awaitRelease()
	p.del()
}

// sniffRelease looks at a segment's frames for a RELEASE. The client sends it from 0.0.0.0, which a socket never sees.
func sniffRelease(t *testing.T, ns *nstest.NS) (await func()) {
	t.Helper()
	var fd int
	ns.Do(t, func() {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16([]byte{8, 0}))); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	return func() {
		const udp, release = 14 + 20 + 8, 7
		b := make([]byte, 1500)
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100); n != 1 || err != nil {
				continue
			}
			if n, err := unix.Read(fd, b); err == nil && n > udp && dhcpType(b[udp:n]) == release {
				return
			}
		}
		t.Error("DEL doesn't give the lease back to the server")
	}
}
