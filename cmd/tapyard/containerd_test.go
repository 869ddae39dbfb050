package main

import (
	"os/exec"
	"strings"
	"testing"

	"tapyard/bench/nstest"
)

// ctr is Debian's containerd by its own client, which knows no port mappings. `ctr run --cni` makes ADD and, when the container
// has ended, DEL, which names no namespace. Detached it makes no DEL.
type ctr struct {
	*runtimeNode
	detached string               // names of containers that are
	attached map[string]*exec.Cmd // clients of the others
}

func startCtr(n *runtimeNode, detached string) *ctr {
	n.t.Helper()
	n.write("/etc/containerd/config.toml", "version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n")
	n.service("containerd", "/usr/bin/containerd --log-level warn")
	n.must("ctr", "images", "import", "/root/image.tar")
	return &ctr{runtimeNode: n, detached: detached, attached: map[string]*exec.Cmd{}}
}

func (c *ctr) run(name string, _ int) {
	c.t.Helper()
	if strings.Contains(c.detached, name) {
		c.must("ctr", "run", "--detach", "--cni", nstest.Image, name)
		return
	}
	cmd := c.Command("ctr", "run", "--rm", "--cni", nstest.Image, name)
	cmd.Stderr = c.t.Output()
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.attached[name] = cmd
	eventually(c.t, name+" runs", func() bool { return c.pid(name) != "" })
}

// pid returns the process of a container that runs.
func (c *ctr) pid(name string) string {
	c.t.Helper()
	for line := range strings.Lines(c.must("ctr", "task", "list")) {
		if words := strings.Fields(line); words[0] == name && words[2] == "RUNNING" {
			return words[1]
		}
	}
	return ""
}

// exec does without `ctr task exec`, which loses what a program prints last, one time in thirty.
func (c *ctr) exec(name string, args ...string) *exec.Cmd {
	c.t.Helper()
	return c.Command("nsenter", append([]string{"--target", c.pid(name), "--mount", "--net", "--pid", "--"}, args...)...)
}

func (c *ctr) remove(name string) {
	c.t.Helper()
	c.must("ctr", "task", "kill", "--signal", "KILL", name)
	if cmd := c.attached[name]; cmd != nil {
		cmd.Wait() // the exit code is the container's
		return
	}
	eventually(c.t, name+" has ended", func() bool { return c.pid(name) == "" })
	c.must("ctr", "task", "delete", name)
	c.must("ctr", "container", "delete", name)
	c.must("rm", "/var/lib/cni/results/tapyard-default-"+name+"-eth0") // ctr's own, for a DEL that it never makes
}

// Debian's containerd attaches pods by ctr; the agent notices those that no DEL comes for.
func TestRuntimeContainerd(t *testing.T) {
	near, far := startRuntimeNodes(t)
	testRuntime(t, near, far, startCtr(near, "bd"), startCtr(far, ""), 0)
	for name, swept := range map[string]bool{"a": false, "d": true} {
		if got := strings.Contains(near.log(), `"a pod vanished without a DEL; detaching it" node=n1 port=default-`+name+" "); got != swept {
			t.Errorf("%s was found to have vanished without a DEL: %t, want %t", name, got, swept)
		}
	}
}
