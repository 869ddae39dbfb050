package attach

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
)

// A disk without room fails an ADD, which leaves nothing and says why; what was acknowledged is there, and DEL
// goes on working, after a restart too.
func TestFullDisk(t *testing.T) { bothTypes(t, testFullDisk) }

func testFullDisk(t *testing.T, portType string) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tapyard-full", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	n := newNode(t, func(c *Config) { c.PortType, c.StateDir = portType, dir })
	n.add(t, nstest.New(t), "c0")
	fillDisk(t, dir)
	var pods []*nstest.NS
	failed := nstest.New(t)
	for len(pods) < 200 { // the room that the file has lasts for some
		ns := nstest.New(t)
		_, err := n.Add(t.Context(), reqFor(ns, fmt.Sprint("c", len(pods)+1)))
		if err == nil {
			pods = append(pods, ns)
			continue
		}
		if code := podapi.AsError(err).Code; code != podapi.CodeTryAgain || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, database)) {
			t.Errorf("code %d, %v; want %d, with the file and why", code, err, podapi.CodeTryAgain)
		}
		if links := linksOf(t, ns); len(links) != 1 {
			t.Errorf("a failed ADD left %v", links)
		}
		failed = ns
		break
	}
	acknowledged := len(pods) + 1
	t.Logf("%d ADDs on a full disk", len(pods))
	if len(pods) == 200 {
		t.Fatal("the disk isn't full")
	}
	for range 3 {
		if _, err := n.Add(t.Context(), reqFor(failed, "again")); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v", err)
		}
	}
	n.restart(t)
	if got := len(n.records(t)); got != acknowledged || len(n.List()) != acknowledged {
		t.Errorf("%d records and %d pods after a restart, want %d", got, len(n.List()), acknowledged)
	}
	for i := range acknowledged {
		n.del(t, Request{ContainerID: fmt.Sprint("c", i), IfName: "eth0", NetnsFD: -1})
	}
	n.assertNothing(t, append(pods, failed)...)
	n.add(t, failed, "c0") // what the DELs gave back is enough
	n.del(t, reqFor(failed, "c0"))
}

// fillDisk leaves not a byte.
func fillDisk(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := 1 << 16; chunk > 0; {
		if _, err := f.Write(bytes.Repeat([]byte{0xff}, chunk)); err != nil {
			chunk /= 2
		}
	}
}

// 250 pods are attached 32 at a time while 50 others are removed.
func TestManyAtOnce(t *testing.T) { bothTypes(t, testManyAtOnce) }

func testManyAtOnce(t *testing.T, portType string) {
	more, fewer := 250, 50
	if testing.Short() {
		more, fewer = 60, 12
	}
	n := newNode(t, func(c *Config) {
		c.PortType = portType
		c.Subnets = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22"), dualStack[1]}
	})
	pods := make([]*nstest.NS, more+fewer)
	for i := range pods {
		pods[i] = nstest.New(t)
	}
	for i := range fewer {
		n.add(t, pods[i], fmt.Sprint("c", i))
	}
	var running sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range fewer {
		running.Go(func() { n.del(t, reqFor(pods[i], fmt.Sprint("c", i))) })
	}
	for i := fewer; i < len(pods); i++ {
		slots <- struct{}{}
		running.Go(func() {
			if _, err := n.Add(t.Context(), reqFor(pods[i], fmt.Sprint("c", i))); err != nil {
				t.Error(err)
			}
			<-slots
		})
	}
	running.Wait()
	rows, err := n.Audit(t.Context(), false)
	if wrong, _ := wrongAndRepaired(rows); err != nil || wrong != "" || len(rows) != 2*more {
		t.Errorf("%d addresses, want %d; wrong %q, %v", len(rows), 2*more, wrong, err)
	}
	holder := map[netip.Prefix]string{}
	for i := fewer; i < len(pods); i++ { // as the pods see it
		for _, a := range linksOf(t, pods[i])["eth0"].Addrs {
			p := netip.PrefixFrom(netip.MustParseAddr(a.Local), a.Length)
			if holder[p] != "" && !p.Addr().IsLinkLocalUnicast() {
				t.Errorf("%s and %s have %v", holder[p], pods[i].Name(), p)
			}
			holder[p] = pods[i].Name()
		}
	}
	for i := fewer; i < len(pods); i++ {
		running.Go(func() { n.del(t, reqFor(pods[i], fmt.Sprint("c", i))) })
	}
	running.Wait()
	n.assertNothing(t, pods...)
}
