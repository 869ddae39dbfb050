package wire

// NDOptions is a view over the options of a neighbour discovery message (RFC 4861
// section 4.6), up to the end of the message.
type NDOptions []byte

// NDOptionsOf returns the options of a router solicitation, neighbour solicitation
// or neighbour advertisement; ok is false for other types and shorter messages.
func NDOptionsOf(m ICMPv6) (options NDOptions, ok bool) {
	at := ndOptions
	switch m.Type() {
	case ICMPv6RouterSolicit:
		at = ICMPv6Len
	case ICMPv6NeighborSolicit, ICMPv6NeighborAdvert:
	default:
		return nil, false
	}
	if len(m) < at {
		return nil, false
	}
	return NDOptions(m[at:]), true
}

// OnlyOf says that the options' lengths are right, and that each link-layer address
// among them, the sender's or the target's, is mac. Receivers differ in which of
// several they take.
func (o NDOptions) OnlyOf(mac MAC) bool {
	for len(o) > 0 {
		if len(o) < 2 || o[1] == 0 || int(o[1])*ndOptionUnit > len(o) {
			return false
		}
		if (o[0] == ndOptionSource || o[0] == ndOptionTarget) && (o[1] != 1 || MAC(o[2:ndOptionUnit]) != mac) {
			return false
		}
		o = o[int(o[1])*ndOptionUnit:]
	}
	return true
}
