package attach

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
)

// sh runs a script in the agent's namespace.
func sh(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// What ADD answers lists the devices that are there, with the names and MACs that they have, and says which of
// them has the addresses.
func TestResult(t *testing.T) { bothTypes(t, testResult) }

func testResult(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	req := &podapi.Request{Command: "ADD", ContainerID: "c1", IfName: "eth0", Netns: ns.Path(), Stdin: json.RawMessage(`{"cniVersion":"1.1.0"}`)}
	out, err := n.Handle(t.Context(), req, ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	var r types100.Result
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	for _, dev := range r.Interfaces {
		link := linksOf(t, ns)[dev.Name]
		if dev.Sandbox == "" {
			link = ownLink(t, dev.Name)
		}
		if link.MAC == "" || dev.Mac != link.MAC || dev.Mtu != link.MTU || dev.Sandbox != "" && dev.Sandbox != ns.Path() {
			t.Errorf("interface %+v, the device is %+v", dev, link)
		}
	}
	if want := map[string]int{TAP: 1, Veth: 2}[portType]; len(r.Interfaces) != want || len(r.IPs) != 2 {
		t.Fatalf("%d interfaces and %d addresses, want %d and 2", len(r.Interfaces), len(r.IPs), want)
	}
	for _, ip := range r.IPs {
		dev := r.Interfaces[*ip.Interface]
		if dev.Name != "eth0" || dev.Sandbox == "" || !slices.Contains(addressesOf(linksOf(t, ns)["eth0"]), ip.Address.String()) {
			t.Errorf("address %v on %+v", &ip.Address, dev)
		}
	}
}

// A node whose configuration changes keeps the pods that it has as they are.
func TestPodsKeepTheirType(t *testing.T) {
	n, old, tap, veth := newNode(t, nil), nstest.New(t), nstest.New(t), nstest.New(t)
	n.add(t, old, "old")
	n.add(t, tap, "tap")
	n.start.PortType = Veth
	n.restart(t)
	n.add(t, veth, "veth")
	n.start.PortType = TAP
	n.restart(t)
	var kinds []string
	for _, a := range n.List() {
		kinds = append(kinds, a.PortType+" "+n.port(t, a).Kind())
	}
	if want := []string{"tap tap", "tap tap", "veth veth"}; !slices.Equal(kinds, want) {
		t.Errorf("types and ports %v, want %v", kinds, want)
	}
	if _, err := Open(Config{PortType: "macvlan"}); err == nil || !strings.Contains(err.Error(), `"macvlan"`) || !strings.Contains(err.Error(), Veth) {
		t.Errorf("an unknown type: %v", err)
	}
}

// A kill between the record and anything else leaves a pair without a record: the DEL that knows the key alone
// removes it, and so does an ADD of that key. A device that bears the name and not the alias isn't ours.
func TestPairWithoutRecord(t *testing.T) {
	n, ns := newNode(t, ofType(Veth)), nstest.New(t)
	host := hostIfName("c1/eth0")
	leftover := "ip link add " + host + " type veth peer name far0 && ip link set " + host + " alias "
	sh(t, leftover+"tapyard:c1/eth0 && nft add table netdev tapyard-"+host)
	n.del(t, Request{ContainerID: "c1", IfName: "eth0", NetnsFD: -1})
	n.assertNothing(t, ns)
	sh(t, leftover+"tapyard:c1/eth0")
	n.add(t, ns, "c1")
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
	sh(t, leftover+"mine")
	defer sh(t, "ip link del "+host)
	n.del(t, reqFor(ns, "c1"))
	ownLink(t, host)
}

// A pod whose pair's other end is elsewhere is not restored, and said to be so.
func TestRestoreWithoutTheHostEnd(t *testing.T) {
	n, ns, elsewhere := newNode(t, ofType(Veth)), nstest.New(t), nstest.New(t)
	a := n.add(t, ns, "c1")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip link set "+a.HostIfName()+" netns "+elsewhere.Name())
	var log strings.Builder
	n.start.Log = textLog(&log)
	n.reopen(t)
	if len(n.List()) > 0 || len(n.records(t)) != 1 || !strings.Contains(log.String(), a.HostIfName()) {
		t.Errorf("published %v, recorded %v, log %s", n.listed(), n.records(t), &log)
	}
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns, elsewhere)
}
