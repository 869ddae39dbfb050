package attach

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// EnableForwarding makes the node a router in the families of its pod subnets, as pods need to reach the
// world and to be reached from it. Interfaces that follow router advertisements go on doing so. What is set
// already is left alone; a change is logged. It acts in the network namespace of the calling thread.
func EnableForwarding(subnets []netip.Prefix, log *slog.Logger) error {
	f := forwarding{log: log}
	if slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
		if err := f.set("net/ipv4/ip_forward", "1", "pods reach the world through this node"); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return f.enable6()
	}
	return nil
}

const sysctlDir = "/proc/sys"

type forwarding struct{ log *slog.Logger }

// enable6 first has those interfaces that accept router advertisements do so as a router, too (accept_ra 2
// in the kernel's ip-sysctl.rst: a router ignores them by default, RFC 4861 section 6.2.7). Afterwards would
// be too late: switching to forwarding removes the default routes that they have brought.
func (f forwarding) enable6() error {
	const all = "net/ipv6/conf/all/forwarding"
	if value, err := f.get(all); err != nil || value == "1" {
		return err
	}
	interfaces, err := filepath.Glob(filepath.Join(sysctlDir, "net/ipv6/conf/*"))
	if err != nil {
		return fmt.Errorf("list %s/net/ipv6/conf: %w", sysctlDir, err)
	}
	for _, path := range interfaces {
		switch name := filepath.Base(path); name {
		case "all", "default", "lo", HostDevice:
		default:
			err := f.keepAdvertisements("net/ipv6/conf/" + name)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // an interface may just have gone
				return err
			}
		}
	}
	return f.set(all, "1", "pods reach the world through this node")
}

func (f forwarding) keepAdvertisements(conf string) error {
	accept, err := f.get(conf + "/accept_ra")
	router, routerErr := f.get(conf + "/forwarding")
	if err = errors.Join(err, routerErr); err != nil || accept != "1" || router != "0" {
		return err
	}
	return f.set(conf+"/accept_ra", "2", "the interface follows router advertisements, and with forwarding it would no longer")
}

func (f forwarding) get(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctlDir, key))
	if err != nil {
		return "", fmt.Errorf("read sysctl %s (does the kernel have the protocol?): %w", dotted(key), err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (f forwarding) set(key, value, why string) error {
	old, err := f.get(key)
	if err != nil || old == value {
		return err
	}
	if err := os.WriteFile(filepath.Join(sysctlDir, key), []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl %s is %s and has to be %s: %w; set it on the host ('sysctl -w %s=%s') or run the agent privileged",
			dotted(key), old, value, err, dotted(key), value)
	}
	f.log.Info("sysctl set", "key", dotted(key), "from", old, "to", value, "why", why)
	return nil
}

// dotted is how sysctl(8) wants the name, whose own dots (eth0.100) become slashes.
func dotted(key string) string {
	return strings.NewReplacer("/", ".", ".", "/").Replace(key)
}
