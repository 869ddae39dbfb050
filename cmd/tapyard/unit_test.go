package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
)

// unitEnv has the tests that install a node run its agent by the unit, under a real systemd, instead of by hand.
const unitEnv = "TAPYARD_UNDER_UNIT"

// podOperations are the tests of what is done to pods. Those of the lab, of tunnels and of speed have nothing that the
// unit's hardening could forbid and these don't do.
var podOperations = []struct {
	name  string
	test  func(*testing.T)
	short bool // not done by hand as well, or what the hardening touches most
}{
	{"Versions", TestCNIVersions, false},
	{"Del", TestCNIDel, false},
	{"Check", TestCNICheck, false},
	{"CheckWithoutAddresses", TestCNICheckWithoutAddresses, false},
	{"Status", TestCNIStatus, false},
	{"StatusOfPeers", TestCNIStatusOfPeers, false},
	{"GC", TestCNIGC, false},
	{"Tool", TestCNITool, false},
	{"Chains", TestChainsWithReferencePlugins, true},
	{"MappedPorts", TestMappedPortsThroughTheSwitch, false},
	{"AddressBesideThePodSubnets", TestAddressBesideThePodSubnets, false},
	{"Bandwidth", TestBandwidthIsKept, false},
	{"SeveralNetworks", TestPodInSeveralNetworks, false},
	{"Lease", TestLeaseFromTheSegment, false},
	{"AuditAndRebuild", TestAuditAndRebuild, false},
	{"RingsAndQueues", TestPodWithRingsAndQueues, true},
	{"Uplink", TestPodOnAnUplink, false},
	{"Beyond", TestPodBeyondTheCluster, false},
	{"UsualPlaces", testUsualPlaces, true},
	{"OtherUsersPod", testOtherUsersPod, true},
}

// Whatever is done to pods works under the unit's hardening.
func TestUnderTheUnit(t *testing.T) {
	for _, op := range podOperations {
		if testing.Short() && !op.short {
			continue
		}
		t.Run(op.name, func(t *testing.T) {
			t.Setenv(unitEnv, "1")
			op.test(t)
		})
	}
}

// underUnit boots a service manager on the node, with the programs and the unit installed, and the node's folder at the
// same path.
func (n *installed) underUnit(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "node-") // a service has another /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n.cli = buildIn(t, dir)
	n.unit = nstest.NewSystemd(t, n.node, dir, nstest.CNIPlugins(t))
	n.must("install", "--root", n.unit.Path("/"))
	config, log := n.unit.Path(defaultConfig), filepath.Join(dir, "log")
	dropIn := n.unit.Path("/etc/systemd/system/tapyard.service.d/log.conf") // there is no journal
	err = errors.Join(os.Remove(config), os.Symlink(filepath.Join(dir, "tapyard.yaml"), config), os.MkdirAll(filepath.Dir(dropIn), 0o755),
		os.WriteFile(dropIn, fmt.Appendf(nil, "[Service]\nStandardOutput=append:%[1]s\nStandardError=append:%[1]s\n", log), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	n.systemctl("daemon-reload")
	t.Cleanup(func() {
		text, _ := os.ReadFile(log)
		for line := range bytes.Lines(text) {
			for _, refusal := range []error{syscall.EPERM, syscall.EACCES, syscall.EROFS, syscall.EAFNOSUPPORT} {
				if bytes.Contains(line, []byte(refusal.Error())) {
					t.Errorf("in the agent's log: %s", line)
				}
			}
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", text)
		}
	})
}

func (n *installed) systemctl(args ...string) string {
	n.t.Helper()
	out, err := n.unit.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// startUnit is start; after a SIGKILL the service manager has started another agent already.
func (n *installed) startUnit() (stop func(syscall.Signal)) {
	n.t.Helper()
	n.systemctl("start", "tapyard")
	n.answers()
	return func(s syscall.Signal) {
		n.t.Helper()
		if s != syscall.SIGKILL {
			n.systemctl("stop", "tapyard")
			return
		}
		before := n.systemctl("show", "-P", "MainPID", "tapyard")
		n.systemctl("kill", "--kill-who=main", "--signal=KILL", "tapyard")
		eventually(n.t, "the service manager notices", func() bool {
			return n.systemctl("show", "-P", "MainPID", "tapyard") != before
		})
	}
}

// plugin runs the installed plugin on the node as its runtime would, for a pod in the namespace at a path.
func (n *nodeRuntime) plugin(verb, netns, keys string) string {
	n.t.Helper()
	cmd := n.unit.Command("env", "CNI_COMMAND="+verb, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS="+netns, "CNI_PATH=/opt/cni/bin", "/opt/cni/bin/tapyard")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "usual", "type": "tapyard", "socket": %q%s}`, filepath.Join(n.runDir, "cni.sock"), keys))
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v: %s", verb, err, out)
	}
	return string(out)
}

// testUsualPlaces is about an agent with everything where it is on a node: plugins in /opt/cni/bin, and their state below
// /var/lib/cni; also for a DEL that finds no agent. At last, what these tests pass under is in force.
func testUsualPlaces(t *testing.T) {
	n := newChains(t)
	root := n.unit.Path("/")
	stop := n.start()
	defer func() { stop(syscall.SIGTERM) }()
	sh(t, fmt.Sprintf("cp %s/host-local %s/opt/cni/bin/", nstest.CNIPlugins(t), root))
	const keys = `, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.3"}]]}`
	given := func() []string { return glob(filepath.Join(root, "var/lib/cni/networks/usual/10.*")) }
	if out := n.plugin("ADD", n.pod.Path(), keys); !strings.Contains(out, "10.244.1.3/24") || len(given()) != 1 {
		t.Errorf("ADD: %s; host-local has %v", out, given())
	}
	n.plugin("STATUS", "", keys)
	if n.plugin("DEL", n.pod.Path(), keys); len(given()) > 0 {
		t.Errorf("after DEL host-local has %v", given())
	}
	n.plugin("ADD", n.pod.Path(), keys)
	stop(syscall.SIGTERM)
	n.plugin("DEL", n.pod.Path(), keys) // leaves a tombstone
	stop = n.start()
	eventually(t, "a DEL that found no agent is done", func() bool {
		return len(given())+len(glob(filepath.Join(n.runDir, "tombstones/*"))) == 0 && n.pod.Command("ip", "link", "show", "eth0").Run() != nil
	})
	if out, err := n.unit.Command("/usr/local/bin/tapyard", "doctor", "offloads").CombinedOutput(); err != nil {
		t.Errorf("doctor: %v: %s", err, out)
	}
	n.assertHardened()
}

// assertHardened asks the kernel for what the agent may do.
func (n *installed) assertHardened() {
	n.t.Helper()
	proc := n.unit.Path("/proc/" + n.systemctl("show", "-P", "MainPID", "tapyard"))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	const capabilities = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_SYS_ADMIN
	for _, want := range []string{"\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n", fmt.Sprintf("\nCapBnd:\t%016x\n", capabilities)} {
		if err != nil || !strings.Contains(string(status), want) {
			n.t.Errorf("%v; the agent lacks %q: %s", err, want, status)
		}
	}
	if _, err := os.Stat(n.unit.Path("/sys/fs/cgroup/devices/cgroup.procs")); err != nil {
		n.t.Log("this machine's devices are guarded by cgroup v2, which nstest's service manager doesn't have")
		return
	}
	script := `cat /sys/fs/cgroup/devices$(sed -n s/^[0-9]*:devices://p $0/cgroup)/devices.list`
	list, err := n.unit.Command("sh", "-ec", script, "/proc/"+filepath.Base(proc)).CombinedOutput()
	const tun = "c 10:200 rw" // of Documentation/admin-guide/devices.txt
	if err != nil || !strings.Contains(string(list), tun) || strings.Contains(string(list), "a *:*") {
		n.t.Errorf("%v; the agent has the devices %s", err, list)
	}
}

// testOtherUsersPod is about a pod that is known by a process of another user: the next agent without descriptors opens
// its device there again.
func testOtherUsersPod(t *testing.T) {
	n := newChains(t)
	stop := n.start()
	defer func() { stop(syscall.SIGTERM) }()
	process := n.unit.Command("unshare", "--net", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", "echo $$; exec sleep 1000")
	out, err := process.StdoutPipe()
	if err == nil {
		err = process.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer process.Wait()
	defer process.Process.Kill()
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	netns := fmt.Sprintf("/proc/%d/ns/net", pid)
	ping := func() {
		t.Helper()
		if out, err := n.unit.Command("nsenter", "--net="+netns, "ping", "-c1", "-W5", "10.244.1.1").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	n.plugin("ADD", netns, "")
	ping()
	stop(syscall.SIGTERM)
	stop = n.start()
	ping()
	n.plugin("DEL", netns, "")
}
