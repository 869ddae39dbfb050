package main

import (
	"fmt"
	"os/exec"
	"testing"

	"tapyard/bench/nstest"
)

// podman is Debian's, the last one with a backend for CNI.
type podman struct{ *runtimeNode }

// podmanConfig is for a machine that has neither the journal nor a cgroup manager.
const podmanConfig = `[network]
network_backend = "cni"
default_network = "tapyard"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
`

func startPodman(n *runtimeNode) *podman {
	n.t.Helper()
	n.write("/etc/containers/containers.conf", podmanConfig)
	n.write("/etc/containers/storage.conf", "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n")
	n.write("/etc/containers/policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	n.write("/etc/containers/registries.conf", "")
	n.must("podman", "load", "--input", "/root/image.tar")
	return &podman{n}
}

func (p *podman) run(name string, hostPort int) {
	p.t.Helper()
	args := []string{"run", "--detach", "--name", name, "--cap-add", "NET_RAW"} // to ping
	if hostPort != 0 {
		args = append(args, "--publish", fmt.Sprintf("%d:80", hostPort))
	}
	p.must("podman", append(args, nstest.Image)...)
}

func (p *podman) exec(name string, args ...string) *exec.Cmd {
	return p.Command("podman", append([]string{"exec", "--interactive", name}, args...)...)
}

func (p *podman) remove(name string) {
	p.t.Helper()
	p.must("podman", "rm", "--force", "--time", "0", name)
}

// podman attaches containers and maps their ports.
func TestRuntimePodman(t *testing.T) {
	near, far := startRuntimeNodes(t)
	testRuntime(t, near, far, startPodman(near), startPodman(far), 8080)
	near.noWarnings()
	far.noWarnings()
}
