package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"tapyard/bench/nstest"
)

// service is a node whose agent a real systemd runs, beside one whose agent is a process of the test.
type service struct {
	*cli
	sd   *nstest.Systemd
	pods map[string]*nstest.NS
	far  *exec.Cmd
	dir  string // of the far node
}

const (
	nearUnderlay, farUnderlay = "192.168.1.11", "192.168.1.12"
	unitLog                   = "/var/log/tapyard.log"
)

// startService boots the service manager and starts both agents. keys are further ones of the near node's configuration.
func startService(t *testing.T, keys string) *service {
	t.Helper()
	near, far := nstest.New(t), nstest.New(t)
	sh(t, fmt.Sprintf("ip link add under netns %[1]s type veth peer name under netns %[2]s\n"+
		"ip -n %[1]s addr add %[3]s/24 dev under; ip -n %[1]s link set under up\n"+
		"ip -n %[2]s addr add %[4]s/24 dev under; ip -n %[2]s link set under up", near.Name(), far.Name(), nearUnderlay, farUnderlay))
	s := &service{cli: build(t), sd: nstest.NewSystemd(t, near), pods: map[string]*nstest.NS{}, dir: t.TempDir()}
	s.install()
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	peers := fmt.Sprintf("clusterCIDRs: [10.244.0.0/16]\npeers:\n- {name: near, underlay: %s, podSubnets: [10.244.1.0/24]}\n- {name: far, underlay: %s, podSubnets: [10.244.2.0/24]}\n",
		nearUnderlay, farUnderlay)
	write(s.sd.Path("/etc/tapyard/tapyard.yaml"), string(firstConfig)+"name: near\npodSubnets: [10.244.1.0/24]\nunderlay: ["+nearUnderlay+"]\n"+keys)
	write(s.sd.Path("/etc/tapyard/peers.yaml"), peers)
	// There is no journal.
	write(s.sd.Path("/etc/systemd/system/tapyard.service.d/log.conf"), "[Service]\nStandardOutput=append:"+unitLog+"\nStandardError=append:"+unitLog+"\n")
	write(filepath.Join(s.dir, "tapyard.yaml"), fmt.Sprintf("{name: far, podSubnets: [10.244.2.0/24], underlay: [%s], peersFile: %s/peers.yaml, runDir: %[2]s/run, stateDir: %[2]s/state}",
		farUnderlay, s.dir))
	write(filepath.Join(s.dir, "peers.yaml"), peers)
	s.far = far.Command(filepath.Join(s.cli.dir, "tapyard"), "agent", "--config", filepath.Join(s.dir, "tapyard.yaml"))
	farLog, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	s.far.Stdout, s.far.Stderr = farLog, farLog
	if err := s.far.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the near agent's log:\n%s", s.log())
			text, _ := os.ReadFile(farLog.Name())
			t.Logf("the far agent's log:\n%s", text)
		}
	})
	s.ctl("daemon-reload")
	s.ctl("start", "tapyard")
	eventually(t, "the far agent is there", func() bool {
		_, err := os.Stat(filepath.Join(s.dir, "run/cni.sock"))
		return err == nil
	})
	return s
}

// install puts the programs and the unit where the service manager finds them.
func (s *service) install() {
	s.t.Helper()
	first, again := s.must("install", "--root", s.sd.Path("/")), s.must("install", "--root", s.sd.Path("/"))
	for line := range strings.Lines(first) {
		if !strings.HasPrefix(line, "installed ") {
			s.t.Errorf("in an empty root: %s", line)
		}
	}
	for line := range strings.Lines(again) {
		if !strings.HasPrefix(line, "unchanged ") && line != "kept      /etc/tapyard/tapyard.yaml\n" {
			s.t.Errorf("installed again: %s", line)
		}
	}
}

func (s *service) log() string {
	text, _ := os.ReadFile(s.sd.Path(unitLog))
	return string(text)
}

// ctl runs systemctl.
func (s *service) ctl(args ...string) string {
	s.t.Helper()
	out, err := s.sd.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// show returns a property of the unit.
func (s *service) show(property string) string {
	s.t.Helper()
	return s.ctl("show", "-P", property, "tapyard")
}

func (s *service) number(property string) int {
	s.t.Helper()
	n, err := strconv.Atoi(s.show(property))
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// cni runs the plugin as a runtime would, on the near node or the far one.
func (s *service) cni(verb, name string, far bool) (result string, err error) {
	s.t.Helper()
	conf := `{"cniVersion":"1.0.0","name":"pods","type":"tapyard"}`
	cmd := s.sd.Command("/opt/cni/bin/tapyard")
	if far {
		conf = fmt.Sprintf(`{"cniVersion":"1.0.0","name":"pods","type":"tapyard","socket":%q}`, filepath.Join(s.dir, "run/cni.sock"))
		cmd = exec.Command(filepath.Join(s.cli.dir, "tapyard-cni"))
	}
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+name, "CNI_NETNS="+s.pods[name].Path(), "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin")
	cmd.Stdin = strings.NewReader(conf)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", verb, name, err, out)
	}
	return string(out), err
}

// attach makes a pod and returns its address.
func (s *service) attach(name string, far bool) netip.Addr {
	s.t.Helper()
	s.pods[name] = nstest.New(s.t)
	out, err := s.cni("ADD", name, far)
	if err != nil {
		s.t.Fatal(err)
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.IPs) != 1 {
		s.t.Fatalf("ADD %s: %v: %s", name, err, out)
	}
	return result.IPs[0].Address.Addr()
}

func (s *service) detach(name string) {
	s.t.Helper()
	if _, err := s.cni("DEL", name, false); err != nil {
		s.t.Fatal(err)
	}
}

// restarted waits until the unit is active with another process than before.
func (s *service) restarted(before string) {
	s.t.Helper()
	eventually(s.t, "the service is active again", func() bool {
		return s.show("ActiveState") == "active" && s.show("MainPID") != before
	})
}

// The service is ready when it says so, is killed when it makes no progress, passes its descriptors on, and a stop empties
// the store.
func TestService(t *testing.T) {
	s := startService(t, "")
	if got := s.show("StatusText"); got != "0 pods" {
		t.Errorf("status %q", got)
	}
	conflist, err := os.ReadFile(s.sd.Path("/etc/cni/net.d/10-tapyard.conflist"))
	if list, cerr := libcni.NetworkConfFromBytes(conflist); err != nil || cerr != nil || list.Plugins[0].Network.Type != "tapyard" {
		t.Errorf("the runtimes' configuration: %s, %v, %v", conflist, err, cerr)
	}
	s.attach("a", false)
	b := s.attach("b", false)
	// Each pod's TAP, tapyard0, the tunnel's socket of each worker, two listeners and two files.
	stored := 2 + 1 + defaultWorkers() + 2 + 2
	eventually(t, "all descriptors are in the store", func() bool { return s.number("NFileDescriptorStore") == stored })
	s.pings("a", b)

	t.Run("watchdog", func(t *testing.T) {
		pid := s.show("MainPID")
		sh(t, fmt.Sprintf("sed -i s/WatchdogSec=10s/WatchdogSec=1s/ %s", s.sd.Path("/usr/local/lib/systemd/system/tapyard.service")))
		s.ctl("daemon-reload")
		s.ctl("restart", "tapyard")
		s.restarted(pid)
		pid = s.show("MainPID")
		time.Sleep(1500 * time.Millisecond) // longer than it waits
		if now := s.show("MainPID"); now != pid {
			t.Fatal("a healthy service was killed")
		}
		s.sdKill("SIGSTOP")
		s.restarted(pid)
		if result := s.log(); !strings.Contains(result, "SIGABRT") {
			t.Errorf("the log has no SIGABRT")
		}
		s.pings("a", b)
	})
	t.Run("store", func(t *testing.T) {
		before := s.show("MainPID")
		s.ctl("restart", "tapyard")
		s.restarted(before)
		if n := s.number("NFileDescriptorStore"); n != stored {
			t.Errorf("%d descriptors in the store after a restart, want %d", n, stored)
		}
		s.pings("a", b)
		s.detach("b")
		eventually(t, "a DEL takes its descriptor out of the store", func() bool { return s.number("NFileDescriptorStore") == stored-1 })
		if out, err := s.pods["b"].Command("ip", "link", "show", "eth0").CombinedOutput(); err == nil {
			t.Errorf("the device is still there: %s", out)
		}
		s.ctl("stop", "tapyard")
		if n := s.number("NFileDescriptorStore"); n != 0 {
			t.Errorf("%d descriptors in the store of a stopped service", n)
		}
		s.ctl("start", "tapyard")
		c := s.attach("c", false)
		s.pings("a", c)
	})
	t.Run("upgrade", func(t *testing.T) {
		s.upgrade(s.twoBuilds()[0])
		eventually(t, "the new build makes the self-test that its start had no time for", func() bool {
			return strings.Contains(s.log(), "self-test of offloads made by this version, after its start")
		})
	})
	s.noWarnings()
}

// What may change does so without a restart; what may not is named; and a mistake changes nothing and fails the reload.
func TestServiceReload(t *testing.T) {
	s := startService(t, "sourceGuard: true\nworkers: 1\n")
	s.attach("a", false)
	b := s.attach("b", false)
	pid := s.show("MainPID")
	config := s.sd.Path("/etc/tapyard/tapyard.yaml")
	edit := func(script string) { sh(t, "sed -i '"+script+"' "+config) }
	spoofed := func() bool { // b answers to what it took from a's second address
		return s.pods["a"].Command("ping", "-c1", "-W1", "-I", "10.244.1.77", b.String()).Run() == nil
	}
	sh(t, "ip -n "+s.pods["a"].Name()+" addr add 10.244.1.77/32 dev eth0; ip -n "+s.pods["b"].Name()+" neigh replace 10.244.1.77 dev eth0 lladdr $(ip netns exec "+
		s.pods["a"].Name()+" cat /sys/class/net/eth0/address)")
	if spoofed() {
		t.Fatal("the source guard lets a foreign address through")
	}
	reload := func() string {
		out, err := s.sd.Command("/usr/local/bin/tapyard", "reload").CombinedOutput()
		if err != nil {
			t.Fatalf("reload: %v: %s", err, out)
		}
		return string(out)
	}
	if out := reload(); !strings.HasPrefix(out, "nothing changed") {
		t.Errorf("without a change: %s", out)
	}
	edit("s/sourceGuard: true/sourceGuard: false/; s/workers: 1/workers: 2/; $a ageing: 20\\nbumLimit: 7\\nflows: true\\nlogLevel: debug\\nmtu: 1400")
	s.ctl("reload", "tapyard")
	if s.show("ActiveState") != "active" || s.show("MainPID") != pid {
		t.Error("the reload was a restart")
	}
	for _, want := range []string{`msg="configuration changed" node=near keys="[sourceGuard ageing bumLimit flows logLevel]"`,
		`msg="changed in the configuration file, and in force after a restart" node=near keys="[mtu workers]"`} {
		if !strings.Contains(s.log(), want) {
			t.Errorf("the log lacks %s:\n%s", want, s.log())
		}
	}
	if !spoofed() {
		t.Error("without a source guard a foreign address is dropped")
	}
	if out := reload(); !strings.Contains(out, "until 'systemctl restart tapyard': mtu, workers") {
		t.Errorf("said: %s", out)
	}
	shown, err := s.sd.Command("/usr/local/bin/tapyard", "show", "config", "-o", "json").Output()
	var c struct{ Ageing, BUMLimit, Workers, MTU int }
	if jerr := json.Unmarshal(shown, &c); err != nil || jerr != nil || c.Ageing != 20 || c.BUMLimit != 7 || c.Workers != 1 || c.MTU != 1450 {
		t.Errorf("shown: %+v, %v, %v", c, err, jerr)
	}
	edit("s/sourceGuard: false/sourceGuard: true/; s/ageing: 20/ageing: -1/")
	if out, err := s.sd.Command("systemctl", "reload", "tapyard").CombinedOutput(); err == nil {
		t.Errorf("a mistake was accepted: %s", out)
	}
	if !spoofed() {
		t.Error("of a configuration with a mistake something was taken")
	}
	edit("s/ageing: -1/ageing: 20/")
	s.sdKill("SIGHUP")
	eventually(t, "SIGHUP reloads", func() bool { return !spoofed() })
	sh(t, "echo 'peers: [' >>"+s.sd.Path("/etc/tapyard/peers.yaml"))
	if out, err := s.sd.Command("/usr/local/bin/tapyard", "reload").CombinedOutput(); err == nil || !strings.Contains(string(out), "peers.yaml") {
		t.Errorf("a damaged peers file was accepted: %s", out)
	}
}

func (s *service) noWarnings() {
	s.t.Helper()
	assertNoWarnings(s.t, s.log())
}

// assertNoWarnings asserts that an agent had nothing to complain about, except that a container may lack CAP_SYS_RESOURCE, by
// which the unit has more locked memory.
func assertNoWarnings(t *testing.T, log string) {
	t.Helper()
	for line := range strings.Lines(log) {
		if (strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")) && !strings.Contains(line, "RLIMIT_MEMLOCK") {
			t.Errorf("in the log: %s", line)
		}
	}
}

// sdKill signals the main process.
func (s *service) sdKill(signal string) {
	s.t.Helper()
	s.ctl("kill", "--kill-who=main", "--signal="+signal, "tapyard")
}

// pings asserts that a pod reaches an address.
func (s *service) pings(pod string, to netip.Addr) {
	s.t.Helper()
	out, err := s.pods[pod].Command("ping", "-c1", "-W5", to.String()).CombinedOutput()
	if err != nil {
		s.t.Errorf("%s doesn't reach %s: %v: %s", pod, to, err, out)
	}
}

func defaultWorkers() int {
	c := defaults()
	return c.workers()
}

// The exposure that systemd-analyze finds, of 10, is as good as promised.
func TestServiceExposure(t *testing.T) {
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "tapyard.service").CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-analyze: %v: %s", err, out)
	}
	m := regexp.MustCompile(`Overall exposure level for tapyard.service: ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no level in %s", out)
	}
	if level, err := strconv.ParseFloat(string(m[1]), 64); err != nil || level > 3.4 {
		t.Errorf("exposure %s, at most 3.4:\n%s", m[1], out)
	}
}
