//go:build !amd64

package fib

const vectors = false // so nothing calls these

func gather4(root, base *uint32, shift uint64, keys *uint32, out *NextHop, n uint64) {}

func gather6(root, base *uint32, shift uint64, keys *Key6, out *NextHop, n uint64) {}
