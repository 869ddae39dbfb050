package attach

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"tapyard/cniplugin/podapi"
	"tapyard/switch/wire"
)

// Request is what a verb is about.
type Request struct {
	ContainerID string // CNI_CONTAINERID
	IfName      string // CNI_IFNAME
	NetnsPath   string // CNI_NETNS; DEL does without
	NetnsFD     int    // the same, open, or -1; stays the caller's
	Args        string // CNI_ARGS
	Conf        Conf   // of DEL its IPAM only
}

func (r Request) key() string { return r.ContainerID + "/" + r.IfName }

// describe makes of a request the attachment that it asks for, without MTU and addresses.
func (m *Manager) describe(req Request) (Attachment, error) {
	if err := podapi.CheckNames(req.ContainerID, req.IfName); err != nil {
		return Attachment{}, err
	}
	id, err := m.identify(req.NetnsFD)
	if err != nil {
		return Attachment{}, &podapi.Error{Code: podapi.CodeEnvironment, Msg: fmt.Sprintf("CNI_NETNS %q: %v", req.NetnsPath, err)}
	}
	name, err := portName(req)
	if err != nil {
		return Attachment{}, err
	}
	conf := &req.Conf
	network, err := m.networkNamed(conf.Network)
	if err == nil {
		err = network.checkConf(conf)
	}
	if err != nil {
		return Attachment{}, err
	}
	portType := cmp.Or(conf.PortType, m.cfg.PortType)
	queues, err := m.queues(conf.Queues, portType)
	if err != nil {
		return Attachment{}, err
	}
	return Attachment{
		ContainerID: req.ContainerID, IfName: req.IfName, Name: name,
		NetnsPath: req.NetnsPath, NetnsDev: id.Dev, NetnsIno: id.Ino, BootID: m.bootID,
		MAC: cmp.Or(conf.MAC, stableMAC(req)), VNI: network.vni, PortType: portType, Queues: queues, Created: time.Now().UTC(),
		Conflist: conf.Name, Ranges: conf.Ranges, MTULimit: conf.MTU, Routes: conf.Routes, Bandwidth: conf.Bandwidth, PortMappings: conf.PortMappings, IPAM: conf.IPAM,
	}, nil
}

// queues returns how many queues the attachment's TAP is made for, 0 for a device of the kind that has one.
func (m *Manager) queues(n int, portType string) (int, error) {
	most := m.cfg.Steering.Workers()
	switch {
	case n < 0 || n > most:
		return 0, podapi.Errorf(podapi.CodeInvalidConf, "key \"queues\" is %d: 1 to %d, the number of this node's workers ('workers' in tapyard.yaml)", n, most)
	case n > 1 && portType == Veth:
		return 0, podapi.Errorf(podapi.CodeInvalidConf, "key \"queues\" is %d: the pod has a veth pair, with one queue ('portType' in tapyard.yaml or the conflist)", n)
	}
	if n = cmp.Or(n, m.cfg.Queues); n == 1 || portType == Veth {
		n = 0
	}
	return n, nil
}

// stableMAC is locally administered and unicast, and the same whenever the attachment is made. Its first
// byte differs from the 02 of router MACs. Among 10,000 pods, two share one with a probability of 5e-5.
func stableMAC(req Request) wire.MAC {
	sum := sha256.Sum256([]byte(req.key()))
	return wire.MAC{0x0a, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

func portName(req Request) (string, error) {
	args, err := parseArgs(req.Args)
	if err != nil {
		return "", err
	}
	name := req.ContainerID[:min(12, len(req.ContainerID))]
	if ns, pod := args["K8S_POD_NAMESPACE"], args["K8S_POD_NAME"]; ns != "" && pod != "" {
		name = ns + "/" + pod
	}
	if req.IfName != "eth0" {
		name += "/" + req.IfName
	}
	return name, nil
}

// parseArgs reads CNI_ARGS: "KEY=value;KEY=value".
func parseArgs(s string) (map[string]string, error) {
	args := map[string]string{}
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, podapi.Errorf(podapi.CodeEnvironment, "CNI_ARGS: %.64q is not of the form KEY=value", pair)
		}
		if strings.HasPrefix(key, "K8S_POD_NAME") && !plainName(value) {
			return nil, podapi.Errorf(podapi.CodeEnvironment, "CNI_ARGS: %s is %.64q: want at most 253 letters, digits, '_', '.' or '-'", key, value)
		}
		args[key] = value
	}
	return args, nil
}

// plainName keeps out of logs and tables what would garble them.
func plainName(s string) bool {
	return len(s) <= 253 && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789_.-") == ""
}
