package port

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"tapyard/switch/wire"
)

// Read tun_ebpf_select_queue in drivers/net/tun.c and bpf-helpers(7) first.

// Steering has the kernel spread what pods send over the queues of their TAPs so that a flow keeps to one queue, for
// 22 ns a frame in the sender's time. Its program is loaded when the first device needs it; a device keeps it beyond
// Close. Methods may be called from any goroutine, and on a nil one, which has one queue for everybody.
type Steering struct {
	workers int

	once sync.Once
	prog *ebpf.Program
	err  error
}

// NewSteering returns a Steering for devices of a switch with so many workers: more queues than those gain nothing.
func NewSteering(workers int) *Steering { return &Steering{workers: workers} }

// Workers returns how many queues a device gets at most.
func (s *Steering) Workers() int {
	if s == nil {
		return 1
	}
	return s.workers
}

// Close lets go of the program.
func (s *Steering) Close() error {
	s.once.Do(func() { s.err = errors.New("closed") })
	if s.prog == nil {
		return nil
	}
	return s.prog.Close()
}

// queues returns how many queues a device gets that is to have so many, and why it is one if the kernel refuses the
// program.
func (s *Steering) queues(want int) (int, error) {
	n := min(want, s.Workers())
	if n == 1 {
		return 1, nil
	}
	s.once.Do(func() {
		if s.prog, s.err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "tapyard_steer", Type: ebpf.SocketFilter, Instructions: steering()}); s.err != nil {
			s.err = fmt.Errorf("one queue instead of %d, because the kernel refuses the eBPF program that keeps flows in order "+
				"(it needs CONFIG_BPF_SYSCALL, CAP_BPF or CAP_SYS_ADMIN, and no seccomp profile or lockdown against it): %w", n, s.err)
		}
	})
	if s.err != nil {
		return 1, s.err
	}
	return n, nil
}

// steer makes the program choose the queue of what the kernel sends on the device.
func (s *Steering) steer(fd int) error {
	prog := int32(s.prog.FD())
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETSTEERINGEBPF, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("TUNSETSTEERINGEBPF: %w", errno)
	}
	return nil
}

// Where the program has what it loads from the frame, below the frame pointer, such that each field that it reads is
// aligned: the EtherType with the IP header's first 20 bytes, IPv6 addresses, and ports.
const (
	steerHeader = -62
	steerIP     = steerHeader + 2
	steerIPv6   = -40
	steerPorts  = -8
)

// steerFactor spreads the bits of a sum: 2^64 divided by the golden ratio, which is odd.
const steerFactor = -0x61c8864680b583eb

// steering returns the program: a hash of the addresses and, of TCP, UDP and SCTP in whole packets, the ports; of
// its lower 16 bits, the kernel takes the rest by the number of queues. What isn't IP goes to queue 0. Fragments go by the addresses alone, as
// they do in outer source ports, so that a datagram's are together; whole datagrams of their flow may overtake them.
// IPv6 packets with extension headers go by the addresses, too.
//
// The hash is the program's own, because skb->hash is 0 in what comes from a raw socket or a bridge in the pod, and a
// socket's changes when TCP looks for another path (sk_rethink_txhash).
func steering() asm.Instructions {
	const ctx, hash, l4, factor = asm.R6, asm.R7, asm.R8, asm.R9
	load := func(offset, to, size int32, failed string) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, ctx), asm.Mov.Imm(asm.R2, offset), asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, to),
			asm.Mov.Imm(asm.R4, size), asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, failed),
		}
	}
	mix := func(offset int16, size asm.Size) asm.Instructions {
		return asm.Instructions{
			asm.LoadMem(asm.R1, asm.RFP, offset, size), asm.Add.Reg(hash, asm.R1), asm.Mul.Reg(hash, factor),
			asm.Mov.Reg(asm.R1, hash), asm.RSh.Imm(asm.R1, 32), asm.Xor.Reg(hash, asm.R1),
		}
	}
	var p asm.Instructions
	add := func(parts ...asm.Instructions) {
		for _, part := range parts {
			p = append(p, part...)
		}
	}
	add(asm.Instructions{asm.Mov.Reg(ctx, asm.R1), asm.LoadImm(factor, steerFactor, asm.DWord), asm.Mov.Imm(hash, 0)},
		load(wire.EthernetLen-2, steerHeader, 2+wire.IPv4MinLen, "other"),
		asm.Instructions{
			asm.LoadMem(asm.R1, asm.RFP, steerHeader, asm.Half), asm.HostTo(asm.BE, asm.R1, asm.Half),
			asm.JEq.Imm(asm.R1, int32(wire.EtherTypeIPv6), "ipv6"),
			asm.JNE.Imm(asm.R1, int32(wire.EtherTypeIPv4), "other"),
		},
		mix(steerIP+12, asm.DWord), // both addresses
		asm.Instructions{
			asm.LoadMem(asm.R1, asm.RFP, steerIP+6, asm.Half), asm.HostTo(asm.BE, asm.R1, asm.Half),
			asm.JSet.Imm(asm.R1, 0x3fff, "done"), // more fragments, or not the first
			asm.LoadMem(l4, asm.RFP, steerIP, asm.Byte), asm.And.Imm(l4, 15), asm.LSh.Imm(l4, 2), asm.Add.Imm(l4, wire.EthernetLen),
			asm.LoadMem(asm.R1, asm.RFP, steerIP+9, asm.Byte),
			asm.Ja.Label("l4"),
		})
	ipv6 := load(wire.EthernetLen+8, steerIPv6, 32, "other")
	ipv6[0] = ipv6[0].WithSymbol("ipv6")
	add(ipv6, mix(steerIPv6, asm.DWord), mix(steerIPv6+8, asm.DWord), mix(steerIPv6+16, asm.DWord), mix(steerIPv6+24, asm.DWord),
		asm.Instructions{
			asm.Mov.Imm(l4, wire.EthernetLen+wire.IPv6Len),
			asm.LoadMem(asm.R1, asm.RFP, steerIP+6, asm.Byte),
			asm.JEq.Imm(asm.R1, int32(wire.ProtoTCP), "ports").WithSymbol("l4"),
			asm.JEq.Imm(asm.R1, int32(wire.ProtoUDP), "ports"),
			asm.JNE.Imm(asm.R1, protoSCTP, "done"),
		})
	ports := load(0, steerPorts, 4, "done")
	ports[0] = ports[0].WithSymbol("ports")
	ports[1] = asm.Mov.Reg(asm.R2, l4)
	add(ports, mix(steerPorts, asm.Word), asm.Instructions{
		asm.Mov.Reg(asm.R0, hash).WithSymbol("done"), asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("other"), asm.Return(),
	})
	return p
}

// protoSCTP has its ports where TCP and UDP do (RFC 9260 section 3.1).
const protoSCTP = 132
