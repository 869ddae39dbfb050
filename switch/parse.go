package vswitch

import (
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// parse is the second stage: it checks every header and the offload metadata once, so that later stages
// trust them, and counts what arrived.
func (w *worker) parse() {
	var wireFrames, bytes uint64
	for i, f := range w.burst.Frames() {
		f.In = uint16(w.in.id)
		if w.in.role != RoleTunnel && w.in.id != port.Local {
			f.VNI = w.in.vni
		}
		v := &w.verdicts[i]
		*v = verdict{}
		v.reason = parseFrame(f, &w.parsed[i])
		if v.reason != drop.None { // its metadata can't be trusted, so it stands for itself alone
			f.GSOType, f.NeedsCsum = wire.GSONone, false
		} else if w.in.role == RoleTunnel && !f.NeedsCsum {
			frame.RestoreOffload(f, &w.parsed[i], w.snap.mtu)
		}
		wireFrames += uint64(f.Wire())
		bytes += uint64(f.Len())
	}
	n := uint64(w.burst.Len())
	if w.in.id == port.Local {
		w.st.Originated.Add(n, wireFrames)
		return
	}
	w.st.Rx.Add(n, wireFrames)
	w.st.RxBytes.Add(bytes)
}

func parseFrame(f *frame.Frame, p *wire.Parsed) drop.Reason {
	if fault := wire.Parse(f.Bytes(), f.IsSuper(), p); fault != wire.FaultNone {
		return faultReasons[fault]
	}
	if wire.Ethernet(f.Bytes()).Src().IsMulticast() {
		return drop.MulticastSource
	}
	if f.GSOType != wire.GSONone { // the ECN flag alone is no type: checkSuper refuses it
		return checkSuper(f, p)
	}
	if f.NeedsCsum {
		return checkPartial(f, p)
	}
	return drop.None
}

var faultReasons = [wire.NumFaults]drop.Reason{
	wire.FaultShortEthernet:  drop.ShortEthernet,
	wire.FaultVLANTagged:     drop.VLANTagged,
	wire.FaultShortARP:       drop.ShortARP,
	wire.FaultARPFields:      drop.ARPFields,
	wire.FaultShortIPv4:      drop.ShortIPv4,
	wire.FaultIPv4Version:    drop.IPv4Version,
	wire.FaultIPv4HeaderLen:  drop.IPv4HeaderLen,
	wire.FaultIPv4TotalLen:   drop.IPv4TotalLen,
	wire.FaultIPv4Checksum:   drop.IPv4Checksum,
	wire.FaultShortIPv6:      drop.ShortIPv6,
	wire.FaultIPv6Version:    drop.IPv6Version,
	wire.FaultIPv6PayloadLen: drop.IPv6PayloadLen,
	wire.FaultIPv6Extension:  drop.IPv6Extension,
	wire.FaultShortL4:        drop.ShortL4,
	wire.FaultTCPDataOffset:  drop.TCPDataOffset,
	wire.FaultUDPLength:      drop.UDPLength,
}

const (
	// maxTCPSegments: 65,535 bytes in segments of 48, the least MSS that Linux sends with
	// (net.ipv4.tcp_min_snd_mss). A pod that claims more wants us to send a packet per byte.
	maxTCPSegments = 65535/48 + 1
	maxUDPSegments = 128 // UDP_MAX_SEGMENTS since Linux 6.9; 64 before
)

// checkSuper holds the GSO metadata of a super-frame, which a pod may have invented, against its
// headers, and sets HdrLen, which the tun driver gets wrong.
func checkSuper(f *frame.Frame, p *wire.Parsed) drop.Reason {
	var proto uint8
	var kind wire.Kind
	maxSegments := maxTCPSegments
	switch f.GSOType {
	case wire.GSOTCPv4, wire.GSOTCPv4 | wire.GSOECN:
		proto, kind = wire.ProtoTCP, wire.KindIPv4
	case wire.GSOTCPv6, wire.GSOTCPv6 | wire.GSOECN:
		proto, kind = wire.ProtoTCP, wire.KindIPv6
	case wire.GSOUDPL4:
		proto, kind, maxSegments = wire.ProtoUDP, p.Kind, maxUDPSegments
	default:
		return drop.BadOffload
	}
	f.HdrLen = uint16(p.Payload)
	if p.Kind != kind || p.Proto != proto || p.Fragment || !f.NeedsCsum || int32(f.CsumStart) != p.L4 ||
		p.Payload > frame.MaxHeaderLen || int(p.End) != f.Len() || p.Payload >= p.End || f.GSOSize == 0 || f.Wire() > maxSegments {
		return drop.BadOffload
	}
	return checkPartial(f, p)
}

// checkPartial makes sure that completing a partial checksum can change nothing but a transport checksum:
// anywhere else, a pod could rewrite the addresses and ports that lookup has already decided on, or what a
// message of ND claims, which the guard has read.
func checkPartial(f *frame.Frame, p *wire.Parsed) drop.Reason {
	start, offset := int32(f.CsumStart), int32(f.CsumOffset)
	ok := (p.Kind == wire.KindIPv4 || p.Kind == wire.KindIPv6) && p.HasL4() && start+offset+2 <= p.End
	switch {
	case start != p.L4: // the inner packet of a tunnel that the pod runs itself
		ok = ok && !p.ND && start >= p.L4+wire.UDPLen && start >= p.Payload
	case p.Proto == wire.ProtoTCP:
		ok = ok && offset == wire.TCPChecksumOffset
	case p.Proto == wire.ProtoUDP:
		ok = ok && offset == wire.UDPChecksumOffset
	default:
		ok = false
	}
	if !ok {
		return drop.BadOffload
	}
	return drop.None
}
