package bench

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
)

// Every subject must carry frames and a stream, and account for all that it carries.
func TestSubjectsBalance(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes 20 s")
	}
	ownTempDir(t)
	s, err := prepare(Config{Executable: buildTapyard(t), Progress: t.Output()})
	must(t, err)
	defer func() { must(t, s.close()) }()
	burst := ppsScenarios[0]
	for name, c := range map[string]struct {
		start starter
		sc    scenario
	}{
		"bridge":                  {startBridge, scenario{name: "paced", rate: 20_000}},
		"vde2":                    {startVDE, burst},
		"ovs":                     {startOVS, burst}, // drops most of it
		"two agents":              {startAgents(true, bestWire), crossBurstScenario},
		"two agents, plain":       {startAgents(true, plainWire), crossBurstScenario},
		"two agents, no offloads": {startAgents(false, bestWire), crossBurstScenario},
		"vxlan":                   {startVXLAN(true), crossBurstScenario},
		"vxlan, no offloads":      {startVXLAN(false), crossBurstScenario},
		"nebula":                  {startNebula(true), scenario{name: "paced", rate: 20_000}}, // loses some of bursts, and counts none
		"ovs vxlan":               {startOVSNodes(true), crossBurstScenario},
		"ovs vxlan, no offloads":  {startOVSNodes(false), crossBurstScenario},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() { must(t, s.stop()) }()
			must(t, s.start(t.Context(), []starter{c.start}))
			if len(s.absent) > 0 {
				t.Fatalf("absent: %v", s.absent)
			}
			requireBalance(t, s, c.sc)
			v, err := s.stream(t.Context(), s.subjects[0], 200*time.Millisecond)
			must(t, err)
			if !(v[0] > 0 && v[2] > 0) {
				t.Errorf("no throughput, or it took no time of the machine: %v", v)
			}
		})
	}
}

func requireBalance(t *testing.T, s *session, sc scenario) {
	t.Helper()
	sub := s.subjects[0]
	var a *account
	requireCount(t, func() (err error) {
		if a, err = s.offer(t.Context(), sub, sc, 300*time.Millisecond); err != nil {
			return err
		}
		t.Logf("%+v", *a)
		return a.check()
	})
	if processes := len(sub.pids()) > 0; processes != (a.cpu.switching > 0) {
		t.Errorf("%d processes forward and have used %v", len(sub.pids()), a.cpu.switching)
	}
	if sc.window > 0 && a.generator.Sent-a.sink.Received > uint64(sc.window) {
		t.Errorf("%d of %d frames were lost although the sender waited for them", a.generator.Sent-a.sink.Received, a.generator.Sent)
	}
}

func TestWindow(t *testing.T) {
	path, err := makeCounter(t.TempDir())
	must(t, err)
	sink, err := openCounter(path)
	must(t, err)
	defer sink.close()
	generator, err := openCounter(path)
	must(t, err)
	defer generator.close()
	w := window{size: 2 * batchSize, arrived: generator}
	for _, c := range []struct {
		sent, arrived uint64
		at            time.Duration
		open          bool
		why           string
	}{
		{0, 0, 0, true, "nothing is on its way"},
		{64, 0, 1, true, "64 of 128 are"},
		{128, 0, 2, false, "it is full"},
		{128, 63, 3, false, "63 have arrived, which is no room for a batch"},
		{128, 64, 4, true, "64 have"},
		{192, 64, windowPatience, false, "it waits a while"},
		{192, 64, windowPatience + 4, true, "it has waited: 128 are lost"},
		{256, 64, windowPatience + 5, true, "64 are on their way beside them"},
		{320, 64, windowPatience + 6, false, "128 are"},
	} {
		sink.store(c.arrived)
		if got := w.open(c.sent, c.at); got != c.open {
			t.Errorf("%d sent, %d arrived, at %v: open %v, want %v: %s", c.sent, c.arrived, c.at, got, c.open, c.why)
		}
	}
}

// ethtool must find off what stands for a NIC without offloads, and on what a veth has by default.
func TestSwitchOffloadsOff(t *testing.T) {
	ns := nstest.New(t)
	ns.Do(t, func() {
		must(t, exec.Command("ip", "link", "add", "under", "type", "veth", "peer", "name", "other").Run())
		for _, want := range []string{"on", "off"} {
			out, err := ns.Command("ethtool", "-k", "under").Output()
			must(t, err)
			for _, feature := range []string{"tx-checksumming", "tx-tcp-segmentation", "tx-tcp6-segmentation", "generic-segmentation-offload", "tx-udp-segmentation"} {
				if !strings.Contains(string(out), feature+": "+want) {
					t.Errorf("%s is not %s:\n%s", feature, want, out)
				}
			}
			must(t, switchOffloadsOff("under"))
		}
	})
}

// The kernel tells a socket itself, too, how much it has dropped there.
func TestPacketSocketDrops(t *testing.T) {
	ns := nstest.New(t)
	ns.Do(t, func() {
		must(t, raise("lo"))
		const ethPAll = 0x0300 // ETH_P_ALL in network byte order
		in, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, ethPAll)
		must(t, err)
		defer unix.Close(in)
		out, err := packetSocket(1) // lo
		must(t, err)
		defer unix.Close(out)
		for range 2000 { // of about 768 bytes each; the buffer holds 212,992
			_, err := unix.Write(out, make([]byte, 60))
			must(t, err)
		}
		got, err := packetSocketDrops()
		must(t, err)
		st, err := unix.GetsockoptTpacketStats(in, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		must(t, err)
		if got == 0 || got != uint64(st.Drops) {
			t.Errorf("%d frames dropped, the socket says %d of %d", got, st.Drops, st.Packets)
		}
	})
}
