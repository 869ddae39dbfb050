package attach

import (
	"fmt"
	"net/netip"
	"strings"
)

// PortMapping sends what arrives at a port of the node on to one of a pod.
type PortMapping struct {
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	Protocol      string     `json:"protocol"`        // tcp, udp or sctp
	HostIP        netip.Addr `json:"hostIP,omitzero"` // invalid: every address of the node
}

// String returns the mapping as "192.168.1.11:8080->80/tcp".
func (p PortMapping) String() string {
	host := "*"
	if p.HostIP.IsValid() {
		host = p.HostIP.String()
		if p.HostIP.Is6() {
			host = "[" + host + "]"
		}
	}
	return fmt.Sprintf("%s:%d->%d/%s", host, p.HostPort, p.ContainerPort, p.Protocol)
}

// portMappingJSON is a PortMapping as runtimes give it.
type portMappingJSON struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// readPortMappings heeds them only if the configuration itself declares the capability: a portmap plugin in the
// same chain declares it for itself, and one of the two has to leave it alone.
func (c *Conf) readPortMappings(j *confJSON) error {
	if !j.Capabilities["portMappings"] {
		return nil
	}
	const key = "runtimeConfig.portMappings."
	for _, m := range j.RuntimeConfig.PortMappings {
		if m.HostPort < 1 || m.HostPort > 65535 {
			return wrong(key+"hostPort", m.HostPort, "want 1 to 65535")
		}
		if m.ContainerPort < 1 || m.ContainerPort > 65535 {
			return wrong(key+"containerPort", m.ContainerPort, "want 1 to 65535")
		}
		p := PortMapping{HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort), Protocol: strings.ToLower(m.Protocol)}
		switch p.Protocol {
		case "tcp", "udp", "sctp":
		case "":
			p.Protocol = "tcp" // as Kubernetes and portmap have it
		default:
			return wrong(key+"protocol", m.Protocol, "want tcp, udp or sctp")
		}
		if m.HostIP != "" {
			ip, err := netip.ParseAddr(m.HostIP)
			if err != nil || ip.Zone() != "" {
				return wrong(key+"hostIP", m.HostIP, "want an address of this node, or none for all of them")
			}
			if ip = ip.Unmap(); ip == netip.IPv6Loopback() {
				return wrong(key+"hostIP", m.HostIP, "the kernel sends nothing from ::1 to pods; want 127.0.0.1, or another address of this node")
			}
			if !ip.IsUnspecified() {
				p.HostIP = ip
			}
		}
		c.PortMappings = append(c.PortMappings, p)
	}
	return nil
}
