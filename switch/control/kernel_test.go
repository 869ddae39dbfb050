package control

import (
	"fmt"
	"slices"
	"testing"

	"tapyard/bench/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestLocalNetworksAreThoseOfTheKernel(t *testing.T) {
	ns := nstest.New(t)
	for _, args := range [][]string{
		{"tuntap", "add", "eth0", "mode", "tap"}, {"tuntap", "add", "tapyard0", "mode", "tap"},
		{"addr", "add", "192.168.1.11/24", "dev", "eth0"}, {"addr", "add", "10.9.9.9/32", "dev", "eth0"},
		{"addr", "add", "fd00:192:168:1::11/64", "dev", "eth0", "nodad"}, {"addr", "add", "10.244.1.1/32", "dev", "tapyard0"},
	} {
		if out, err := ns.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ns.Do(t, func() {
		networks, err := LocalNetworks("tapyard0")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, n := range networks {
			got = append(got, fmt.Sprint(n.Device, " ", n.Prefix))
		}
		slices.Sort(got)
		if want := []string{"eth0 10.9.9.9/32", "eth0 192.168.1.0/24", "eth0 fd00:192:168:1::/64", "lo 127.0.0.0/8", "lo ::1/128"}; !slices.Equal(got, want) {
			t.Errorf("networks %q, want %q", got, want)
		}
	})
}
