package attach

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/port"
)

// found is a device that bears our alias, and where.
type found struct {
	key string
	deviceCopy
	unreadable error // of the copy; only the key is known then
	name, mac  string
	mtu        int
	path       string     // of the namespace; "" is the agent's own
	id         port.Netns // of the namespace
	kind       string     // as the kernel calls it: tun or veth
	addresses  []netip.Prefix
}

// where names the device for a person, who may have to remove it.
func (f found) where() string {
	if f.path == "" {
		return "device " + f.name
	}
	return fmt.Sprintf("device %s in %s", f.name, plain(f.path))
}

// scan finds the devices with an alias of ours in all network namespaces that have a name or a process, those of
// other agents and those that are being made included. A namespace that only a descriptor keeps is not found.
func scan() (devices []found, err error) {
	own, err := openNetns("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer unix.Close(own)
	ownID, err := netnsOf(own)
	if err != nil {
		return nil, err
	}
	if devices, err = scanNetns(own, "", ownID); err != nil {
		return nil, err
	}
	paths, err := netnsPaths()
	if err != nil {
		return nil, err
	}
	for ino, path := range paths {
		if ino == ownID.Ino {
			continue
		}
		more, err := scanPath(path, ino)
		if err != nil {
			return nil, fmt.Errorf("devices in %s: %w", path, err)
		}
		devices = append(devices, more...)
	}
	slices.SortFunc(devices, func(x, y found) int {
		return cmp.Or(x.a.Created.Compare(y.a.Created), cmp.Compare(x.key, y.key), cmp.Compare(y.path, x.path))
	})
	return devices, nil
}

// scanPath finds nothing in a namespace that has just gone.
func scanPath(path string, ino uint64) ([]found, error) {
	fd, err := openNetns(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	id, err := netnsOf(fd)
	if err != nil || id.Ino != ino {
		return nil, nil // another one's by now
	}
	return scanNetns(fd, path, id)
}

func scanNetns(fd int, path string, id port.Netns) (devices []found, err error) {
	p, err := openPod(fd)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	links, err := p.links()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		attrs := link.Attrs()
		if !strings.HasPrefix(attrs.Alias, aliasPrefix) {
			continue
		}
		f := found{name: attrs.Name, mac: attrs.HardwareAddr.String(), mtu: attrs.MTU, path: path, id: id, kind: link.Type()}
		if f.key, f.deviceCopy, f.unreadable = parseAlias(attrs.Alias); f.key == "" || !strings.Contains(attrs.Alias, " ") {
			continue // somebody else's idea, or of a version without copies
		}
		if f.addresses, err = p.addresses(link); err != nil {
			return nil, err
		}
		devices = append(devices, f)
	}
	return devices, nil
}

// addresses returns a device's addresses but the kernel's own link-local one.
func (p *pod) addresses(link netlink.Link) (out []netip.Prefix, err error) {
	list, err := p.AddrList(link, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // then the pod is changing them
		return nil, fmt.Errorf("list the addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range list {
		ip, _ := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if prefix := netip.PrefixFrom(ip.Unmap(), bits); !ip.IsLinkLocalUnicast() {
			out = append(out, prefix)
		}
	}
	return out, nil
}

// netnsPaths returns a path for each network namespace, by inode: where it is mounted, as under /run/netns, or a
// process that is in it. Mounts are ours and those of the host's first process: an agent in a container that has the host's
// processes, but not its /run, would else take a pod that has no process just now for one that has gone.
func netnsPaths() (map[uint64]string, error) {
	paths := map[uint64]string{}
	if err := mountedNetns("self", paths); err != nil {
		return nil, err
	}
	if err := mountedNetns("1", paths); err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1) // Glob would make nothing of an error, and of that no pods
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, err := strconv.Atoi(name); err != nil {
			continue
		}
		if err := processNetns("/proc/"+name, paths); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// mountedNetns adds those that are mounted where the process can see them.
func mountedNetns(process string, paths map[uint64]string) error {
	mounts, err := os.ReadFile("/proc/" + process + "/mountinfo")
	if err != nil {
		return err
	}
	root := ""
	if process != "self" {
		root = "/proc/" + process + "/root"
	}
	for line := range strings.Lines(string(mounts)) {
		// proc(5): the fourth field is the root, net:[inode], the fifth the place.
		if fields := strings.Fields(line); len(fields) > 5 {
			if ino, ok := netnsInode(fields[3]); ok && (root == "" || paths[ino] == "") {
				paths[ino] = root + unescapeMount(fields[4])
			}
		}
	}
	return nil
}

// processNetns adds that of a process, or of its threads if the first one has ended, unless it is there.
func processNetns(dir string, paths map[uint64]string) error {
	path := dir + "/ns/net"
	target, err := os.Readlink(path)
	if errors.Is(err, fs.ErrNotExist) {
		threads, _ := filepath.Glob(dir + "/task/[0-9]*/ns/net")
		for _, path = range threads {
			if target, err = os.Readlink(path); err == nil {
				break
			}
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission) {
		return nil // it has ended, or is beyond what this agent may do
	}
	if err != nil {
		return err
	}
	if ino, ok := netnsInode(target); ok && paths[ino] == "" {
		paths[ino] = path
	}
	return nil
}

// netnsInode reads "net:[4026531840]".
func netnsInode(s string) (uint64, bool) {
	digits, ok := strings.CutPrefix(strings.TrimSuffix(s, "]"), "net:[")
	if !ok {
		return 0, false
	}
	ino, err := strconv.ParseUint(digits, 10, 64)
	return ino, err == nil
}

// unescapeMount undoes what the kernel does to blanks, tabs, line ends and backslashes.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
