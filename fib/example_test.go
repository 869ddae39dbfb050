package fib_test

import (
	"fmt"
	"net/netip"

	"tapyard/fib"
)

func Example() {
	var domain fib.Domain
	table := fib.New(&domain)

	// The control plane: two routes at once. The numbers index the caller's adjacencies.
	err := table.Apply([]fib.Change{
		{Prefix: netip.MustParsePrefix("10.244.0.0/16"), NextHop: 7},
		{Prefix: netip.MustParsePrefix("10.244.1.5/32"), NextHop: 42},
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	// A worker: one View per burst, one quiescent point after it, offline while it waits for I/O.
	reader := domain.Register()
	defer reader.Close()
	reader.Online()
	view := table.View()
	fmt.Println(view.Lookup(netip.MustParseAddr("10.244.1.5")))
	fmt.Println(view.Lookup(netip.MustParseAddr("10.244.1.6")))
	fmt.Println(view.Lookup(netip.MustParseAddr("192.0.2.1")) == fib.None)
	reader.Quiesce()
	reader.Offline()

	fmt.Println(table.Insert(netip.MustParsePrefix("10.244.1.5/24"), 9))
	// Output:
	// 42
	// 7
	// true
	// fib: bad prefix: 10.244.1.5/24 has bits set beyond its length: write 10.244.1.0/24, or the address with its full length
}
