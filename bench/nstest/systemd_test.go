package nstest

import (
	"os"
	"strings"
	"testing"
)

// A service manager runs a service in the test's network namespace, and sees namespaces that are made later.
func TestSystemd(t *testing.T) {
	ns := New(t)
	s := NewSystemd(t, ns)
	unit := "[Service]\nType=notify\nNotifyAccess=all\nPrivateMounts=yes\n" +
		"ExecStart=/bin/sh -c 'readlink /proc/self/ns/net >/run/mine; systemd-notify --ready; sleep 1000'\n"
	if err := os.WriteFile(s.Path("/etc/systemd/system/mine.service"), []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := s.Command("systemctl", "start", "mine.service").CombinedOutput(); err != nil {
		t.Fatalf("start: %v: %s", err, out)
	}
	mine, err := os.ReadFile(s.Path("/run/mine"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := ns.Command("readlink", "/proc/self/ns/net").Output()
	if err != nil || string(out) != string(mine) {
		t.Errorf("the service is in %s, the namespace is %s, %v", mine, out, err)
	}
	later := New(t)
	pid, err := s.Command("systemctl", "show", "-P", "MainPID", "mine.service").Output()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.Command("sh", "-ec", "mkdir /run/late; mount -t tmpfs late /run/late").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, path := range []string{later.Path(), "/run/late"} { // from the mount namespace of the service itself
		text, err := s.Command("grep", path, "/proc/"+strings.TrimSpace(string(pid))+"/mountinfo").CombinedOutput()
		if err != nil {
			t.Errorf("the service doesn't see %s: %v %s", path, err, text)
		}
	}
	cgroups, err := os.ReadFile(s.Path("/proc/1/cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(cgroups)) {
		if !strings.Contains(line, "/tapyard-nstest-") {
			t.Errorf("the service manager is in a cgroup of the machine's: %s", line)
		}
	}
}
