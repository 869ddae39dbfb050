package flow

import "tapyard/switch/wire"

// Read RFC 9293 section 3.3.2 and Linux' net/netfilter/nf_conntrack_proto_tcp.c first, whose table this one follows
// where flags alone decide.

// State is how far a conversation has got. The zero value is none.
type State uint8

// The states. A side "closes" by FIN.
const (
	_               State = iota
	Opening               // TCP: a SYN and no answer
	Midway                // TCP: first heard in its middle, from one side
	Answered              // TCP: SYN both ways, and the opener's ACK is to come
	Established           // TCP: both sides were heard
	OpenerClosing         // TCP: the side that opened it has closed
	AnswererClosing       // TCP: the other side has closed
	Closed                // TCP: both sides have
	Reset                 // TCP: RST
	Unreplied             // UDP, ICMP echo: heard from one side
	Replied               // UDP: from both
	EchoReplied           // ICMP echo: from both
	numStates
)

var stateNames = [numStates]string{"invalid", "opening", "midway", "answered", "established", "opener_closing", "answerer_closing", "closed", "reset",
	"unreplied", "replied", "echo_replied"}

// String returns the state in snake_case.
func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return stateNames[0]
}

// timeouts are the seconds of silence after which a flow is forgotten: those of Linux
// (Documentation/networking/nf_conntrack-sysctl.rst) but for established connections. Linux remembers those for
// 5 days, which fill a table with the dead; 8,000 s are Cilium's (--bpf-ct-timeout-regular-tcp) and above the 2 h
// 4 min that RFC 5382 requires.
var timeouts = [numStates]int32{
	Opening: 120, Midway: 120, Answered: 60, Established: 8000, OpenerClosing: 120, AnswererClosing: 120, Closed: 120, Reset: 10,
	Unreplied: 30, Replied: 120, EchoReplied: 30,
}

// settled says whether both sides keep the conversation up: a flow that is evicted only when it is over.
func (s State) settled() bool {
	switch s {
	case Established, OpenerClosing, AnswererClosing, Replied:
		return true
	}
	return false
}

// class is what a segment or datagram means to its flow.
type class uint8

const (
	syn class = iota
	synAck
	fin // with or without SYN
	rst // with whatever else
	ack
	odd // none of the flags above, which no implementation sends
	datagram
	echo
	numClasses = 8 // a power of two, for the index of next
)

// classes is indexed by the low five flags of a TCP header, FIN, SYN, RST, PSH and ACK.
var classes = func() (table [32]class) {
	for flags := range table {
		switch f := uint8(flags); {
		case f&wire.TCPRst != 0:
			table[flags] = rst
		case f&wire.TCPFin != 0:
			table[flags] = fin
		case f&wire.TCPSyn != 0 && f&wire.TCPAck != 0:
			table[flags] = synAck
		case f&wire.TCPSyn != 0:
			table[flags] = syn
		case f&wire.TCPAck != 0:
			table[flags] = ack
		default:
			table[flags] = odd
		}
	}
	return table
}()

// first is the state that the first frame of a flow gives it; 0 for one that opens none: a FIN or RST ends
// something that is forgotten already. A SYN|ACK says that the other side was the opener.
var first = [numClasses]State{syn: Opening, synAck: Answered, ack: Midway, datagram: Unreplied, echo: Unreplied}

// next is the state after a frame: [state][direction<<3 | class]. Direction 0 is from the opener.
var next = func() (table [numStates][2 * numClasses]State) {
	const (
		opn = Opening
		mid = Midway
		ans = Answered
		est = Established
		clO = OpenerClosing
		clA = AnswererClosing
		cld = Closed
		rst = Reset
	)
	tcp := [...][2][6]State{
		//      from the opener:                   from the answerer:
		//      syn  syn|ack fin rst  ack  odd
		opn: {{opn, opn, opn, rst, opn, opn}, {ans, ans, opn, rst, opn, opn}}, // an ACK of something else is no answer
		mid: {{opn, mid, clO, rst, mid, mid}, {mid, ans, clA, rst, est, mid}},
		ans: {{ans, ans, clO, rst, est, ans}, {ans, ans, clA, rst, ans, ans}},
		est: {{est, est, clO, rst, est, est}, {est, est, clA, rst, est, est}},
		clO: {{clO, clO, clO, rst, clO, clO}, {clO, clO, cld, rst, clO, clO}},
		clA: {{clA, clA, cld, rst, clA, clA}, {clA, clA, clA, rst, clA, clA}},
		cld: {{opn, cld, cld, rst, cld, cld}, {opn, cld, cld, rst, cld, cld}}, // a SYN makes a new flow: see restarts
		rst: {{opn, rst, rst, rst, rst, rst}, {opn, rst, rst, rst, rst, rst}},
	}
	for state, row := range tcp {
		for direction := range row {
			copy(table[state][direction*numClasses:], row[direction][:])
		}
	}
	for direction := range 2 {
		at := direction * numClasses
		table[Unreplied][at+int(datagram)] = [2]State{Unreplied, Replied}[direction]
		table[Unreplied][at+int(echo)] = [2]State{Unreplied, EchoReplied}[direction]
		table[Replied][at+int(datagram)] = Replied
		table[EchoReplied][at+int(echo)] = EchoReplied
	}
	return table
}()

// restarts says whether a frame of that class opens a new connection where the last one has ended.
func (s State) restarts(c class) bool { return c == syn && (s == Closed || s == Reset) }
