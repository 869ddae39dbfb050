package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"tapyard/cniplugin/podapi"
	"tapyard/switch/wire"
)

// Read the CNI specification 1.1, section 1, and its CONVENTIONS.md first.

// Conf is what the network configuration of a request asks for. The zero value asks for a pod of the node's
// own network as the node has them.
type Conf struct {
	CNIVersion   string
	Name         string         // the conflist's
	Network      string         // which of the node's networks; "" is its own
	Ranges       []netip.Prefix // of the network's subnets: what this conflist gives out; nil: all of them
	MTU          int            // at most, in bytes; 0 is the network's
	PortType     string         // "" is the node's
	Queues       int            // of a TAP; 0 is the node's
	Routes       []Route        // beside those that the network has
	IPs          []netip.Addr   // wanted; a family without one gets what is free
	MAC          wire.MAC       // wanted; zero is our choice
	Bandwidth    *Bandwidth     // nil has no limit
	PortMappings []PortMapping
	IPAM         *Delegation // who gives out the addresses; nil is this agent
	PrevResult   json.RawMessage
}

// Route is one of a pod's.
type Route struct {
	Dst netip.Prefix `json:"dst"`
	GW  netip.Addr   `json:"gw"` // invalid: the destination is on the link
}

// Bandwidth is the capability of that name: rates in bits per second and bursts in bits, as seen from the pod.
// A rate of 0 has no limit.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// confJSON is the form of the keys that we read; all others pass.
type confJSON struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Network    string   `json:"network"`
	Subnet     string   `json:"subnet"`
	Ranges     []string `json:"ranges"`
	MTU        *int     `json:"mtu"`
	PortType   *string  `json:"portType"`
	Queues     int      `json:"queues"`
	Routes     []struct {
		Dst string `json:"dst"`
		GW  string `json:"gw"`
	} `json:"routes"`
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
	Capabilities  map[string]bool `json:"capabilities"`
	RuntimeConfig struct {
		IPs          []string          `json:"ips"`
		MAC          string            `json:"mac"`
		Bandwidth    *Bandwidth        `json:"bandwidth"`
		PortMappings []portMappingJSON `json:"portMappings"`
	} `json:"runtimeConfig"`
	PrevResult json.RawMessage `json:"prevResult"`
}

// wrong is the error of a key with a value that can't be meant.
func wrong(key string, value any, want string) error {
	return podapi.Errorf(podapi.CodeInvalidConf, "key %q is %s: %s", key, quoted(value), want)
}

func quoted(value any) string {
	if s, ok := value.(string); ok {
		return fmt.Sprintf("%.64q", s)
	}
	return fmt.Sprintf("%.64v", value)
}

// parseConf reads the network configuration with what CNI_ARGS adds to it; path is CNI_PATH.
func parseConf(stdin []byte, args, path string) (Conf, error) {
	var j confJSON
	if err := decodeConf(stdin, &j); err != nil {
		return Conf{}, err
	}
	conf := Conf{CNIVersion: j.CNIVersion, Name: j.Name, Network: j.Network, Queues: j.Queues, PrevResult: j.PrevResult, Bandwidth: j.RuntimeConfig.Bandwidth}
	for _, read := range []func(*confJSON) error{conf.readRanges, conf.readDevice, conf.readRoutes, conf.readBandwidth, conf.readPortMappings} {
		if err := read(&j); err != nil {
			return Conf{}, err
		}
	}
	if j.IPAM.Type != "" {
		if len(conf.Ranges) > 0 {
			return Conf{}, wrong("ipam", j.IPAM.Type, "this plugin gives out the addresses, so 'subnet' and 'ranges' belong into its configuration")
		}
		var err error
		if conf.IPAM, err = newDelegation(j.IPAM.Type, path, stdin, args); err != nil {
			return Conf{}, err
		}
	}
	return conf, conf.readRequested(&j, args)
}

// decodeConf tells a value of the wrong kind from what is no JSON.
func decodeConf(stdin []byte, j *confJSON) error {
	err := json.Unmarshal(stdin, j)
	if t := (*json.UnmarshalTypeError)(nil); errors.As(err, &t) {
		return podapi.Errorf(podapi.CodeInvalidConf, "key %q is a JSON %s: want what Go calls %v", t.Field, t.Value, t.Type)
	}
	if err != nil {
		return podapi.Errorf(podapi.CodeDecode, "decode the network configuration: %v", err)
	}
	return nil
}

// readRanges takes "subnet" as one range, at most one of each family.
func (c *Conf) readRanges(j *confJSON) error {
	key, texts := "ranges", j.Ranges
	if j.Subnet != "" {
		if len(texts) > 0 {
			return wrong("subnet", j.Subnet, "with 'ranges' beside it; give one of the two")
		}
		key, texts = "subnet", []string{j.Subnet}
	}
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return wrong(key, text, "want a prefix without host bits, such as 10.244.1.64/26")
		}
		for _, other := range c.Ranges {
			if other.Addr().Is4() == p.Addr().Is4() {
				return wrong(key, text, fmt.Sprintf("a pod gets one address of each family, and there is %v already", other))
			}
		}
		c.Ranges = append(c.Ranges, p)
	}
	return nil
}

// The MTUs that devices can have: what IPv4 needs (RFC 791 section 3.2) to what a TAP takes.
const minConfMTU, maxConfMTU = 68, 65521

func (c *Conf) readDevice(j *confJSON) error {
	if j.MTU != nil {
		if c.MTU = *j.MTU; c.MTU < minConfMTU || c.MTU > maxConfMTU {
			return wrong("mtu", c.MTU, fmt.Sprintf("want %d to %d bytes, or leave it out for what the underlay allows", minConfMTU, maxConfMTU))
		}
	}
	if j.PortType != nil {
		if c.PortType = *j.PortType; c.PortType != TAP && c.PortType != Veth {
			return wrong("portType", c.PortType, fmt.Sprintf("want %q or %q, or leave it out for the node's", TAP, Veth))
		}
	}
	return nil
}

func (c *Conf) readRoutes(j *confJSON) error {
	for _, r := range j.Routes {
		dst, err := netip.ParsePrefix(r.Dst)
		if err != nil || dst != dst.Masked() || dst.Addr().Is4In6() {
			return wrong("routes.dst", r.Dst, "want a prefix without host bits, such as 192.168.0.0/16")
		}
		route := Route{Dst: dst}
		if r.GW != "" {
			if route.GW, err = netip.ParseAddr(r.GW); err != nil || route.GW.Is4() != dst.Addr().Is4() || route.GW.Zone() != "" {
				return wrong("routes.gw", r.GW, fmt.Sprintf("want an address of the family of its dst %v, or leave it out for the network's gateway", dst))
			}
		}
		c.Routes = append(c.Routes, route)
	}
	return nil
}

// readBandwidth holds the limits to the rules of the reference plugin of that name.
func (c *Conf) readBandwidth(*confJSON) error {
	b := c.Bandwidth
	if b == nil {
		return nil
	}
	for _, d := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		if (d.rate == 0) != (d.burst == 0) {
			return wrong("runtimeConfig.bandwidth."+d.name+"Rate", d.rate,
				fmt.Sprintf("with %[1]sBurst %[2]d; want both above 0, in bits per second and in bits, or none of them", d.name, d.burst))
		}
	}
	if *b == (Bandwidth{}) {
		c.Bandwidth = nil
	}
	return nil
}

// readRequested takes the addresses and the MAC that the pod shall have, from the capabilities or, from runtimes
// that know none, from CNI_ARGS. An IPAM plugin gets the addresses as we got them.
func (c *Conf) readRequested(j *confJSON, text string) error {
	args, err := parseArgs(text)
	if err != nil {
		return err
	}
	ips, ipKey := j.RuntimeConfig.IPs, "runtimeConfig.ips"
	if len(ips) == 0 && args["IP"] != "" {
		ips, ipKey = strings.Split(args["IP"], ","), "CNI_ARGS IP"
	}
	if c.IPAM == nil {
		if err := c.readIPs(ipKey, ips); err != nil {
			return err
		}
	}
	mac, macKey := j.RuntimeConfig.MAC, "runtimeConfig.mac"
	if mac == "" {
		mac, macKey = args["MAC"], "CNI_ARGS MAC"
	}
	if mac == "" {
		return nil
	}
	if c.MAC, err = wire.ParseMAC(mac); err != nil || c.MAC.IsMulticast() || c.MAC.IsZero() {
		return wrong(macKey, mac, "want a unicast MAC address, such as 0a:00:00:00:00:01")
	}
	return nil
}

// readIPs accepts addresses with and without a length, which is the subnet's anyway.
func (c *Conf) readIPs(key string, texts []string) error {
	for _, text := range texts {
		bare, _, _ := strings.Cut(text, "/")
		a, err := netip.ParseAddr(bare)
		if err != nil || a.Zone() != "" || a.Is4In6() || a.IsMulticast() || a.IsUnspecified() {
			return wrong(key, text, "want a unicast address of the network's subnet, such as 10.244.1.20")
		}
		for _, other := range c.IPs {
			if other.Is4() == a.Is4() {
				return wrong(key, text, fmt.Sprintf("a pod gets one address of each family, and %v is wanted already", other))
			}
		}
		c.IPs = append(c.IPs, a)
	}
	return nil
}
