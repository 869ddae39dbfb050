package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tapyard/bench/nstest"
)

// cri is containerd 2 by the API that the kubelet has.
type cri struct {
	*runtimeNode
	pods, containers map[string]string // ids by name
}

// pauseImage is what holds a pod's namespaces.
const pauseImage = "tapyard.test/pause:1"

// criConfig is for a machine without CAP_SYS_RESOURCE, and without a registry.
const criConfig = `version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '` + pauseImage + `'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = false
`

func startCRI(n *runtimeNode) *cri {
	n.t.Helper()
	for _, program := range []string{"containerd", "containerd-shim-runc-v2"} {
		n.program(filepath.Join(nstest.Containerd(n.t), program), "/usr/local/bin/"+program)
	}
	n.program(filepath.Join(nstest.CRITools(n.t), "crictl"), "/usr/local/bin/crictl")
	n.program("/usr/lib/cni/loopback", "/opt/cni/bin/loopback") // Debian's containernetworking-plugins; a part of every sandbox
	n.write("/etc/containerd/config.toml", criConfig)
	n.write("/etc/crictl.yaml", "runtime-endpoint: unix:///run/containerd/containerd.sock\ntimeout: 30\n")
	n.service("containerd", "/usr/local/bin/containerd --log-level warn")
	n.write("/root/pause.tar", string(nstest.BusyboxImage(n.t, pauseImage, "exec sleep 1000000")))
	for _, image := range []string{"/root/image.tar", "/root/pause.tar"} {
		n.must("ctr", "--namespace", "k8s.io", "images", "import", image)
	}
	return &cri{n, map[string]string{}, map[string]string{}}
}

func (c *cri) run(name string, hostPort int) {
	c.t.Helper()
	linux := map[string]any{"security_context": map[string]any{"namespace_options": map[string]any{"pid": 1}}} // CONTAINER, the kubelet's default
	sandbox := map[string]any{"metadata": map[string]any{"name": name, "namespace": "default", "uid": "uid-" + name}, "linux": linux}
	if hostPort != 0 {
		sandbox["port_mappings"] = []any{map[string]any{"container_port": 80, "host_port": hostPort}}
	}
	c.file("/root/pod.json", sandbox)
	c.file("/root/container.json", map[string]any{"metadata": map[string]any{"name": "server"}, "image": map[string]any{"image": nstest.Image}, "linux": linux})
	c.pods[name] = c.must("crictl", "runp", "/root/pod.json")
	c.containers[name] = c.must("crictl", "create", "--no-pull", c.pods[name], "/root/container.json", "/root/pod.json")
	c.must("crictl", "start", c.containers[name])
}

func (c *cri) file(path string, v any) {
	c.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(path, string(text))
}

func (c *cri) exec(name string, args ...string) *exec.Cmd {
	return c.Command("crictl", append([]string{"exec", "--interactive", c.containers[name]}, args...)...)
}

func (c *cri) remove(name string) {
	c.t.Helper()
	c.must("crictl", "stopp", c.pods[name])
	c.must("crictl", "rmp", c.pods[name])
}

// condition returns what CRI says of the network.
func (c *cri) condition() (status bool, message string) {
	c.t.Helper()
	var info struct {
		Status struct {
			Conditions []struct {
				Type, Message string
				Status        bool
			}
		}
	}
	c.decode(&info, "crictl", "info")
	for _, condition := range info.Status.Conditions {
		if condition.Type == "NetworkReady" {
			return condition.Status, condition.Message
		}
	}
	c.t.Fatalf("no condition NetworkReady in %+v", info)
	return false, ""
}

// containerd 2 attaches pods as for the kubelet, maps their ports, and asks for STATUS.
func TestRuntimeCRI(t *testing.T) {
	near, far := startRuntimeNodes(t)
	rt := startCRI(near)
	eventually(t, "the network is ready", func() bool { ready, _ := rt.condition(); return ready })
	near.must("systemctl", "stop", "tapyard")
	if ready, message := rt.condition(); ready || !strings.Contains(message, "no answer from the agent") {
		t.Errorf("without an agent the network is ready: %t, %q", ready, message)
	}
	near.must("systemctl", "start", "tapyard")
	if ready, message := rt.condition(); !ready {
		t.Errorf("with an agent the network isn't ready: %q", message)
	}
	testRuntime(t, near, far, rt, startCRI(far), 8080)
	near.noWarnings()
	far.noWarnings()
}
