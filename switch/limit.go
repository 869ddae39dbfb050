package vswitch

import (
	"sync/atomic"
	"time"
)

// What a pod may ask of others, by default. Floods reach every port of the VNI and every peer of a stretched
// one, and a punt costs the slow worker some 2 µs, so both are limited by number, before they cost anything.
const (
	// DefaultBUM is how many broadcast, unknown-destination and multicast frames a port may send in a
	// second: a pod that resolves 500 new neighbours a second or sends 10 Mb/s of multicast stays below it.
	DefaultBUM = 1000
	// DefaultSYN is how many TCP connections a pod may open in a second. Each costs the other side's stack
	// some 5 µs in our thread, so this is 5 % of a core; proxies open some thousands.
	DefaultSYN = 10000
	// accessPunts and transitPunts are how many frames of a port may go to the slow path in a second, from a
	// pod, and from the host or a tunnel, which stand for many senders: 0.4 and 2 % of a core.
	accessPunts, transitPunts = 2000, 10000
	// icmpErrors is how many ICMP errors a second go out because of one pod's port, and transitErrors of
	// the host's or a tunnel's (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f).
	icmpErrors, transitErrors = 100, 1000
)

// bucket is a token bucket that holds at most one second's tokens. The workers that receive from a pod share
// its buckets, since more queues are to give a pod more work done, not larger floods; the zero value has no limit.
type bucket struct {
	cost  atomic.Int64 // of one token, in nanoseconds of waiting; 0 is no limit
	spent atomic.Int64 // Unix time in nanoseconds; from there to now is what was saved up
}

// newBucket returns a full bucket of rate tokens a second; 0 has no limit.
func newBucket(rate int) *bucket {
	b := new(bucket)
	b.setRate(rate)
	return b
}

// setRate changes the rate, for what is taken from now on.
func (b *bucket) setRate(rate int) {
	if rate <= 0 {
		b.cost.Store(0)
	} else {
		b.cost.Store(int64(time.Second) / int64(rate))
	}
}

// take takes n tokens, or none and says no.
func (b *bucket) take(now int64, n int) bool {
	for cost := b.cost.Load(); cost != 0; {
		spent := b.spent.Load()
		after := max(spent, now-int64(time.Second)) + cost*int64(n)
		enough := after <= now
		if spent-now > int64(time.Second) { // the clock was set back
			after = now
		} else if !enough {
			return false
		}
		if b.spent.CompareAndSwap(spent, after) {
			return enough
		}
	}
	return true
}

// limits are a port's shares, one of these for each worker that receives from it. A pod has the same buckets in all of
// them; those of the host and of tunnels, which stand for many senders, are each worker's own.
type limits struct {
	bum    *bucket
	syn    *bucket
	punt   *bucket
	recent window
	peers  map[uint32]*bucket // bum, by peer, of a tunnel: one peer's flood must not use up another's share
}

// A pod's port whose frames are mostly dropped is read no further by that worker for the rest of a window: what it
// sends then dies in its device's ring, in its own time instead of ours. 64 drops a millisecond cost 5 % of a core.
const (
	pauseWindow = int64(time.Millisecond)
	pauseDrops  = 64
)

// window counts a port's frames of the last pauseWindow.
type window struct {
	began         int64
	seen, dropped int
}

// add counts the frames of a burst and says whether the port has had its share.
func (w *window) add(now int64, seen, dropped int) (over bool) {
	if now-w.began >= pauseWindow || now < w.began {
		*w = window{began: now}
	}
	w.seen += seen
	w.dropped += dropped
	return w.dropped >= pauseDrops && w.dropped*4 >= w.seen*3
}

// maxPeerLimits bounds what is kept about peers that have left; a cluster has at most 5,000 nodes.
const maxPeerLimits = 8192

func (l *limits) takeBUM(now int64, peer uint32, n int) bool {
	if peer == 0 {
		return l.bum.take(now, n)
	}
	b := l.peers[peer]
	if b == nil { // once per peer
		if l.peers == nil || len(l.peers) >= maxPeerLimits {
			l.peers = map[uint32]*bucket{}
		}
		b = new(bucket)
		l.peers[peer] = b
	}
	b.cost.Store(l.bum.cost.Load()) // it may have changed
	return b.take(now, n)
}
