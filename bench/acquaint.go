package bench

import (
	"fmt"
	"net"
	"net/netip"
	"time"
)

// acquaintPort is where pods exchange their first datagrams.
const acquaintPort = 5009

// acquaint has two pods exchange a datagram, so that whoever learns has learnt where both are and no run begins
// with a flood, or with an ARP request. It fails if nothing comes through.
func acquaint(from, to pod) error {
	var ends [2]*net.UDPConn
	for i, p := range []pod{from, to} {
		err := inNetns(p.netns, func() (err error) {
			ends[i], err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.addr, acquaintPort)))
			return err
		})
		if err != nil {
			return fmt.Errorf("open a socket in %s: %w", p.netns, err)
		}
		defer ends[i].Close()
	}
	for i, p := range []pod{to, from} { // where end i sends
		if err := sayHello(ends[i], ends[1-i], netip.AddrPortFrom(p.addr, acquaintPort)); err != nil {
			return fmt.Errorf("reach %s: %w", p.netns, err)
		}
	}
	return nil
}

// sayHello repeats its datagram until one arrives: bridges and agents take a moment to be ready.
func sayHello(out, in *net.UDPConn, to netip.AddrPort) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		out.WriteToUDPAddrPort([]byte("hello"), to) // an error is of an earlier one, such as "no route to host"
		in.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, _, err := in.ReadFromUDPAddrPort(make([]byte, 16)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("nothing sent to %s arrived within %v", to, patience)
}
