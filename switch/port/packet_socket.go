package port

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"unsafe"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// packetBuffer is what the socket may hold in each direction, in bytes. The kernel doubles it and charges
// 768 B for a small frame and about 70 KiB for a super-frame: 8 MiB are 10,000 or 120 of them, a burst of
// super-frames in either case.
const packetBuffer = 4 << 20

// packetOptions are set in this order. PACKET_QDISC_BYPASS is not among them: that path drops what it
// would have to segment (net/core/dev.c, __dev_direct_xmit), and veth devices have no queue to bypass.
var packetOptions = []struct {
	text               string
	level, name, value int
}{
	{"PACKET_VNET_HDR", unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
	{"PACKET_AUXDATA", unix.SOL_PACKET, unix.PACKET_AUXDATA, 1},
	{"PACKET_IGNORE_OUTGOING", unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
	// Forced: net.core.rmem_max and wmem_max, 208 KiB by default, are meant for programs without privileges.
	{"SO_RCVBUFFORCE", unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBuffer},
	{"SO_SNDBUFFORCE", unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, packetBuffer},
}

// refuseAll is a filter that keeps frames out until all options are set: the host's own outgoing ones, and
// those without auxiliary data.
var refuseAll = []bpf.RawInstruction{{Op: unix.BPF_RET | unix.BPF_K, K: 0}}

// listenPacket returns a non-blocking socket that is bound to the device, in promiscuous mode until it is
// closed. It is a duplicate of the one that package packet has opened, or Go's poller, to which that one
// is known, would wake for every frame.
func listenPacket(index int) (int, error) {
	conn, err := packet.Listen(&net.Interface{Index: index}, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: refuseAll})
	if err != nil {
		return -1, fmt.Errorf("open packet socket (have we CAP_NET_RAW?): %w", err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if e := raw.Control(func(theirs uintptr) { fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		err = e
	}
	if err == nil {
		if err = setUpPacket(fd, index); err != nil {
			unix.Close(fd)
		}
	}
	return fd, err
}

func setUpPacket(fd, index int) error {
	everything := &unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, everything); err != nil {
		return fmt.Errorf("set promiscuous mode: %w", err)
	}
	if err := setPacketOptions(fd); err != nil {
		return err
	}
	// Last, because it opens the door.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		return fmt.Errorf("set socket option SO_DETACH_FILTER: %w", err)
	}
	return nil
}

func setPacketOptions(fd int) error {
	for _, o := range packetOptions {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set socket option %s to %d (have we CAP_NET_ADMIN?): %w", o.text, o.value, err)
		}
	}
	return nil
}

// packetCaps is what packet sockets of this kernel take whole. All that have PACKET_VNET_HDR take TCP
// super-frames; UDP ones came with kernel 6.2 and are tried out, once, on lo, without
// which they are taken for missing.
var packetCaps = sync.OnceValue(func() Caps {
	if sendsUSO() {
		return CapsAll
	}
	return CapsAll &^ CapUSO
})

// sendsUSO sends a UDP super-frame of two segments with one byte each on lo. Nobody takes it: it is for a MAC
// that lo hasn't.
func sendsUSO() bool {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { go unix.Close(fd) }() // which takes the kernel an RCU grace period, of 10 ms, in which a start has frames wait
	lo, err := net.InterfaceByName("lo")
	if err != nil || unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1) != nil {
		return false
	}
	return unix.Sendto(fd, probeUSO(), 0, &unix.SockaddrLinklayer{Ifindex: lo.Index}) == nil
}

func probeUSO() []byte {
	const l4 = wire.EthernetLen + wire.IPv4MinLen
	b := make([]byte, wire.VirtioNetLen+l4+wire.UDPLen+2)
	EncodeVirtio(wire.VirtioNet(b), &frame.Meta{GSOType: wire.GSOUDPL4, GSOSize: 1, HdrLen: l4 + wire.UDPLen,
		NeedsCsum: true, CsumStart: l4, CsumOffset: 6})
	eth := wire.Ethernet(b[wire.VirtioNetLen:])
	eth.Encode(&wire.EthernetFields{Dst: wire.MAC{2}, Src: wire.MAC{2}, EtherType: wire.EtherTypeIPv4})
	wire.IPv4(eth.Payload()).Encode(&wire.IPv4Fields{TotalLen: uint16(len(eth) - wire.EthernetLen), TTL: 1, Protocol: wire.ProtoUDP,
		Src: netip.IPv4Unspecified(), Dst: netip.IPv4Unspecified()})
	wire.UDP(eth[l4:]).Encode(&wire.UDPFields{Length: wire.UDPLen + 2})
	return b
}

// auxdata is the control message of PACKET_AUXDATA, padded to the alignment of control messages.
type auxdata struct {
	hdr  unix.Cmsghdr
	data unix.TpacketAuxdata
	_    uint32
}

// vlanTag returns the tag that the kernel took out of a frame, if it did: TPID and TCI. received is how
// long the control messages are, in bytes.
func (a *auxdata) vlanTag(received uint64) (tpid, tci uint16, tagged bool) {
	if received < uint64(unsafe.Sizeof(a.hdr)+unsafe.Sizeof(a.data)) || a.hdr.Level != unix.SOL_PACKET || a.hdr.Type != unix.PACKET_AUXDATA ||
		a.data.Status&unix.TP_STATUS_VLAN_VALID == 0 {
		return 0, 0, false
	}
	if a.data.Status&unix.TP_STATUS_VLAN_TPID_VALID == 0 {
		return wire.EtherTypeVLAN, a.data.Vlan_tci, true
	}
	return a.data.Vlan_tpid, a.data.Vlan_tci, true
}
