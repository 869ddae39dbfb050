// Package flow is the connection table: who opened which conversation, how far it has got, and when it was last
// heard. Workers create flows themselves; both directions of one, which may be on two workers, are one entry.
//
// # What is tracked
//
// TCP, UDP and ICMP echo, by VNI, protocol, addresses and ports, echo by its identifier. Fragments and all other
// protocols pass by. The state of a TCP connection comes from SYN, FIN and RST alone (conn.go): sequence numbers
// are the ends' affair. The table is bounded; what finds no room in it is not tracked, and counted.
//
// An entry says nothing about where the frames go: FDB and FIB answer that in about 10 ns each, and a decision
// kept here would have to be proven current against every change of MACs, routes, adjacencies and peers. The
// words for it are there when services and policies make a decision cost more than the proof.
//
// # What readers walk through
//
// A bucket is one word of eight tags, a byte of the hash each, 0 for an empty place; the tags of 262,144 places
// are 256 KiB, so a lookup mostly misses the cache once, for the entry. An entry is one cache line of 64 bytes in
// both families. Its key has the two ends in the order of their addresses, not of the frame, so that both
// directions come to the same entry; who opened the flow is a bit of the state. A key belongs into its first
// bucket, or into its second if that is crowded. Track does all of a burst in three passes (hashes and tags,
// states, keys), so that the cache misses of its frames overlap.
//
// # Why readers are safe
//
// Every word is read and written by atomic operations alone, which Go orders totally. The state word of an entry
// has a phase (free, busy, live), a version, the connection's state and the second of the last frame.
//
//   - Whoever wants to fill or empty a place makes its state busy by compare-and-swap, from free or live; until it
//     stores another phase, the place's key, owner and tag are its own. Nobody waits for it: a place that is busy
//     is passed by, as if it were not there.
//   - Every life of a place has a version of its own. A reader loads the state, compares the key, and loads the state
//     again. If the second one is live with the same version, no word of the key was written in between: writing
//     begins behind a busy state that the reader would have found, and ends with another version. Versions have 24
//     bits and a life takes more than 50 ns, so for a wrong answer a reader would have to sleep between two loads
//     for a multiple of 0.8 s, to the nanosecond, in which the place changes hands all the time.
//   - What is changed in a live entry, connection and time, is changed by compare-and-swap of the whole state word,
//     so that a late worker can't change the next life's.
//   - Tags are hints: set before an entry is live and cleared after, while the place is busy. The state decides.
//
// Nothing is freed, so there is no grace period to wait for, and a table that nobody refers to any more is the
// collector's.
//
// # Why there are no doubles
//
// Two workers may meet the two directions of a new flow at once, and each publishes an entry: the tag,
// then the live state. Then each looks through both buckets for another live entry with the key. Of the two publications one is the
// later one, and the look behind it finds the earlier entry. Of two entries the first in the order of the search
// stays; whoever sees both removes the other one. So at rest there is one, and on the way lookups find that one
// first. What the other had learned in those nanoseconds, one frame's direction, is lost with it.
package flow
