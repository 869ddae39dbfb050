package encap

import "encoding/binary"

// helloLen is the length of a hello: what it is 4, zero 4, sender's session 8, receiver's session 8, messages received
// whole 4 and not whole 4, test 4, what of it passed 4.
const helloLen = 40

// helloVersion is that of the format of hellos and slices. One with another version is no hello.
const helloVersion = 1

// Bits of a hello's third byte.
const (
	helloAsks    uint8 = 1 << iota // an answer is wanted
	helloOffers                    // the sender takes slices
	helloBundles                   // and bundles
)

// hello is what two nodes tell each other about the wire between them.
type hello struct {
	asks, offers bool
	bundles      bool   // the sender takes them if it takes slices
	session      uint64 // of the sender: random, new with each start, not 0
	echo         uint64 // of the receiver, as the sender knows it: proves that the sender gets what is sent to its address
	whole, lost  uint32 // messages that the sender received from the receiver, modulo 2^32
	test, passed uint32 // the receiver's last test of the way to the sender, and a bit for each of its messages that arrived
}

// isHello says whether a datagram is a hello of this version.
func isHello(b []byte) bool {
	return len(b) == helloLen && b[0] == helloFlags && b[1] == helloVersion
}

// parseHello reads a datagram for which isHello is true.
func parseHello(b []byte) hello {
	return hello{
		asks: b[2]&helloAsks != 0, offers: b[2]&helloOffers != 0, bundles: b[2]&helloBundles != 0,
		session: binary.BigEndian.Uint64(b[8:]), echo: binary.BigEndian.Uint64(b[16:]),
		whole: binary.BigEndian.Uint32(b[24:]), lost: binary.BigEndian.Uint32(b[28:]),
		test: binary.BigEndian.Uint32(b[32:]), passed: binary.BigEndian.Uint32(b[36:]),
	}
}

// encode writes all helloLen bytes of b.
func (h *hello) encode(b []byte) {
	clear(b[:helloLen])
	b[0], b[1] = helloFlags, helloVersion
	if h.asks {
		b[2] |= helloAsks
	}
	if h.offers {
		b[2] |= helloOffers
	}
	if h.bundles {
		b[2] |= helloBundles
	}
	binary.BigEndian.PutUint64(b[8:], h.session)
	binary.BigEndian.PutUint64(b[16:], h.echo)
	binary.BigEndian.PutUint32(b[24:], h.whole)
	binary.BigEndian.PutUint32(b[28:], h.lost)
	binary.BigEndian.PutUint32(b[32:], h.test)
	binary.BigEndian.PutUint32(b[36:], h.passed)
}
