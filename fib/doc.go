// Package fib is the forwarding table: longest-prefix match over IPv4 and IPv6 routes, read by every worker for
// every frame while the control plane changes it, and the epoch domain that tells a writer when memory that
// readers may have seen can be used again.
//
// A [Table] is a persistent trie: four address bits per level, chains without branches compressed, all nodes in
// one pointer-free array of 32-bit words that the garbage collector doesn't scan. A change copies the nodes on
// its way from the root, and one atomic store of a pointer publishes the roots of both families together; so a
// [View], which is that pointer loaded once, shows a batch of changes wholly or not at all. A lookup takes no
// lock, never retries and allocates nothing: it takes at most 8 steps for IPv4 and 32 for IPv6 whatever a
// writer does, even one that stopped halfway.
//
// # Why readers are safe
//
// A reader must never see a word change that its View reaches. A word is written for one of three reasons:
//
//   - The block is new, taken from beyond the words of every published version. No View reaches it before the
//     version that holds it is published, and the atomic store of that pointer orders the writes before the
//     loads of any reader that finds it.
//   - The block is re-used. It was handed to [Domain.Retire] after the version that no longer reaches it was
//     published. Let r be a reader. Retire takes a new epoch number e, then looks at the number that r last
//     stored. If that is e or later, r has loaded e, hence, by the total order of Go's atomic operations, will
//     load the new version or a later one whenever it takes a View from now on, and by the contract of
//     [Reader.Quiesce] holds no older View. If it is 0, r is offline and holds none; should r be about to
//     store an old number, it does so after the look, hence loads its Views after that, and again finds the new
//     version. In all other cases the block waits. The look is an atomic load of what r stored at its
//     quiescent point, so everything r read before happens before the writer's next write.
//   - The array grows, or is compacted. Then the words are copied to a new array, and old versions keep the old
//     one, which nobody writes to any more: the collector frees it when no View holds it. A callback that is
//     still to return blocks of a compacted array finds the table with another one, and does nothing.
//
// Blocks that one update both makes and drops were never published, and are re-used at once.
package fib
