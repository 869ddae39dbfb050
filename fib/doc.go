// Package fib is the forwarding table: longest-prefix match over IPv4 and IPv6 routes, read by every worker for
// every frame while the control plane changes it, and the epoch domain that tells a writer when memory that
// readers may have seen can be used again.
//
// # What readers walk through
//
// A [Table] compiles its routes into 32-bit words without pointers, so that the garbage collector has nothing to
// scan. The first address bits select a word of a root (18 bits of IPv4 and 16 of IPv6 in a table of thousands of
// routes, 8 and 4 in a small one). A word is the answer or names a block of an arena: mostly a bitmap for the
// next 6 bits, whose population count up to a position finds that position's word in the same cache line or the
// next. Shorter routes are pushed down into the positions that no longer one covers, so the first answer on the
// way is the right one. Few routes with nothing around them are a list, and IPv6 addresses skip bits that all
// routes share; a large table has neither where a short chain of bitmaps does it, because the branches would be
// mispredicted. See arena.go for the layouts and compile.go for when which is used. Of the Internet's IPv4
// routes two thirds of all covered addresses end in the root and nearly all others in one bitmap behind it.
//
// A batch of lookups goes down level by level and keeps only the keys that have no answer yet, so that cache
// misses overlap and no branch depends on a key; with AVX-512 it does so in vectors (burst_amd64.s).
//
// # What the writer knows
//
// The routes themselves are kept once, sorted by address and length in blocks of words (8 bytes an IPv4 route, 20
// of IPv6). All routes under a prefix are neighbours there, so any part of the compiled form can be made anew from
// them: a change descends to the node that sees the prefix's last bit, makes that node's words for the prefix's
// addresses anew, and the parts below only where the prefix was what covered them. What comes out depends on the
// routes alone, never on the order of changes; tests compare it with a table compiled from nothing.
//
// # What readers see
//
// A [View] is a version: the roots and the arena's array, one pointer. A single change replaces one word by an
// atomic store (one for each root position, if its prefix is shorter than the root's bits), so it shows in Views
// that exist as far as they share what it changes, and each lookup finds the table before or after it. A batch copies the roots and the blocks above
// its changes, and shows in Views that are taken afterwards, wholly or not at all. A lookup takes no lock, never
// retries and allocates nothing; it takes at most 6 steps for IPv4 and 25 for IPv6 whatever a writer does, even
// one that stopped halfway.
//
// # Why readers are safe
//
// A reader must never see a word change that it comes to, except by an atomic store to a value that is right as
// well. A word is written for one of four reasons:
//
//   - It is the value that a single change replaces. The block behind the new value was written before, and the
//     atomic store orders those writes before the loads of any reader that finds it. Blocks never move within an
//     array, and a View spans the array's whole capacity, so an older View reaches the new block as well.
//   - The block is new, taken from beyond the words that any version reaches. No reader comes to it before the
//     store of a value, or of the version, that leads there.
//   - The block is re-used. It was handed to [Domain.Retire] after the last value that led to it was replaced.
//     Let r be a reader. Retire takes a new epoch number e, then looks at the number that r last stored. If that
//     is e or later, r has loaded e, hence, by the total order of Go's atomic operations, will load the new value
//     or version from now on, and by the contract of [Reader.Quiesce] holds no older View. If it is 0, r is
//     offline and holds none; should r be about to store an old number, it does so after the look, hence loads
//     its Views after that, and again finds the new ones. In all other cases the block waits. The look is an
//     atomic load of what r stored at its quiescent point, so everything r read before happens before the
//     writer's next write.
//   - The array grows, or everything is compiled anew. Then there is a new array, the roots are copied or made
//     anew too, and old versions keep the old ones, which nobody writes to any more: the collector frees them
//     when no View holds them. A callback that is still to return blocks of an array left behind finds the table
//     with another arena, and does nothing.
//
// Retired blocks wait for company, as a grace period costs as much as a change, and for the end of an earlier grace
// period: however long a reader takes, a table has one callback in the domain.
package fib
