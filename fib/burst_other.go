//go:build !amd64 || race

package fib

// The race detector doesn't see the loads of assembly, and so not that they come before what they lead to.
const vectors = false

// Nothing calls these.
func gather4(root, base *uint32, shift uint64, keys *uint32, out *NextHop, n uint64) {}

func gather6(root, base *uint32, shift uint64, keys *Key6, out *NextHop, n uint64) {}
