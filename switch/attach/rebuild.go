package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// openOrCreate opens the database, or makes one on a node that has none: if one of its pods' devices is there
// nevertheless, the database was lost, and its addresses are in use.
func openOrCreate(path string, agent agentID) (*store, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return openStore(path, lockWait)
	}
	devices, err := scan()
	if err != nil {
		return nil, fmt.Errorf("look for pods before %s is made: %w", path, err)
	}
	for _, d := range devices {
		if d.agent == agent {
			return nil, &DamagedError{path, fmt.Errorf("it is missing, and pods have devices of this agent, such as %s: %w", d.where(), fs.ErrNotExist)}
		}
	}
	if err := createStore(path, nil); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return openStore(path, lockWait)
}

// Rebuilt says what Rebuild did.
type Rebuilt struct {
	Records []Attachment
	Aside   string // where the damaged database is now; "" if it was missing
	// Short are records of which a part didn't fit into the device's alias: their pods work, but lose what no
	// device says (as a bandwidth), and are better created anew.
	Short []string
	// Lost are devices whose alias can't be read, and why: their pods are cut off, and to be created anew.
	Lost []string
}

// Rebuild writes the records of the agent of this state directory anew, from the copies in the aliases of its
// pods' devices in all network namespaces. The agent must have ended, and the database be damaged or missing.
// The damaged one is kept under another name. With an error, which names the devices that it is about, all is as
// before.
func Rebuild(stateDir string) (Rebuilt, error) {
	path := filepath.Join(stateDir, database)
	agent, err := agentIDOf(stateDir)
	if err != nil {
		return Rebuilt{}, err
	}
	old, err := claimDamaged(path)
	if err != nil {
		return Rebuilt{}, err
	}
	if old != nil {
		defer old.Close()
	}
	devices, err := scan()
	if err != nil {
		return Rebuilt{}, err
	}
	out, err := recordsOf(devices, agent)
	if err != nil {
		return Rebuilt{}, err
	}
	if old != nil {
		out.Aside = fmt.Sprintf("%s.damaged-%s", path, time.Now().UTC().Format("20060102T150405.000000000"))
		if err := os.Rename(path, out.Aside); err != nil {
			return Rebuilt{}, err
		}
	}
	if err := createStore(path, out.Records); err != nil {
		if old != nil {
			err = errors.Join(err, os.Rename(out.Aside, path))
		}
		return Rebuilt{}, err
	}
	return out, nil
}

// claimDamaged returns the damaged database, locked so that no agent starts with it, or nil if there is none.
func claimDamaged(path string) (*os.File, error) {
	s, err := openStore(path, lockWait)
	if err == nil {
		_, err = s.load()
		err = errors.Join(err, s.close())
	}
	damaged := (*DamagedError)(nil)
	switch {
	case err == nil:
		return nil, fmt.Errorf("%s is not damaged: nothing to write anew ('tapyard ipam audit' compares it with the pods' devices)", path)
	case !errors.As(err, &damaged):
		return nil, err // an agent that runs
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := lockFile(f, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: an agent holds it; stop it first: %w", path, err), f.Close())
	}
	return f, nil
}

// recordsOf makes records of an agent's devices. Of a veth pair, whose pod may change its end's alias, the other
// end's copy counts, unless the pod's end says that it is another agent's: both may have a pod of that key.
func recordsOf(devices []found, agent agentID) (out Rebuilt, err error) {
	boot, err := bootID()
	if err != nil {
		return out, err
	}
	hostEnds := map[string]found{}
	for _, d := range devices {
		if d.path == "" && d.kind == Veth && d.name == hostIfName(d.key) && d.unreadable == nil && d.agent == agent {
			hostEnds[d.key] = d
		}
	}
	var errs []error
	holder := map[string]string{} // of keys and addresses
	for _, d := range devices {
		if d.path == "" || d.agent != agent && d.agent != (agentID{}) {
			continue
		}
		if host, paired := hostEnds[d.key]; paired {
			d.unreadable, d.deviceCopy = nil, host.deviceCopy
		}
		if d.unreadable != nil {
			out.Lost = append(out.Lost, fmt.Sprintf("%s: %v", d.where(), d.unreadable))
			continue
		}
		delete(hostEnds, d.key)
		a := d.a
		a.BootID, a.NetnsPath, a.NetnsDev, a.NetnsIno, a.MTU = boot, d.path, d.id.Dev, d.id.Ino, d.mtu
		if a.Name == "" {
			a.Name = a.Key()
		}
		claims := []string{a.Key()}
		for _, p := range a.Addresses {
			claims = append(claims, fmt.Sprintf("%v of VNI %d", p.Addr(), a.VNI))
		}
		for _, c := range claims {
			if other := holder[c]; other != "" {
				errs = append(errs, fmt.Errorf("%s and %s both claim to have %s: delete the pod that is not to have it", other, d.where(), c))
			}
			holder[c] = d.where()
		}
		if d.short {
			out.Short = append(out.Short, describe(a))
		}
		out.Records = append(out.Records, a)
	}
	for _, d := range hostEnds {
		out.Lost = append(out.Lost, fmt.Sprintf("%s: the namespace with its other end, of pod %s, was not found", d.where(), d.key))
	}
	return out, errors.Join(errs...)
}
