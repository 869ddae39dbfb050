package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/format"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "tapyard"

// row is a line of the import table in ARCHITECTURE.md, section 4: its packages may import those of the
// rows above, and not each other.
type row struct {
	name     string
	packages []string // path.Match patterns, relative to the module
	only     []string // if set, the only ones of the rows above that they may import
	except   []string // of the rows above, what they may not import
	outside  []string // modules beyond the standard library and x/sys; "*" is any
}

var importTable = []row{
	{name: "0", packages: []string{"fib", "switch/wire", "switch/drop", "switch/cowmap", "switch/mmsg", "switch/uring", "switch/handover", "cniplugin/podapi"}},
	{name: "1", packages: []string{"switch/frame", "switch/flow"}, only: []string{"switch/wire", "switch/drop"}},
	{name: "2", packages: []string{"switch/port"}, only: []string{"switch/wire", "switch/drop", "switch/mmsg", "switch/uring", "switch/frame"},
		outside: []string{"github.com/vishvananda/netlink", "github.com/vishvananda/netns", "github.com/songgao/water", "github.com/mdlayher/packet",
			"golang.org/x/net/bpf", "github.com/google/nftables", "github.com/cilium/ebpf"}},
	{name: "3", packages: []string{"encap", "switch/fdb", "switch/neigh", "switch/policy", "switch/service", "cniplugin/ipam"}},
	{name: "4", packages: []string{"switch/selftest"}, outside: []string{"github.com/vishvananda/netlink"}},
	{name: "4", packages: []string{"switch"}, except: []string{"encap", "cniplugin/podapi"}},
	{name: "5a", packages: []string{"switch/attach"},
		outside: []string{"github.com/vishvananda/netlink", "github.com/vishvananda/netns", "go.etcd.io/bbolt", "github.com/containernetworking/cni",
			"github.com/google/nftables", "github.com/mdlayher/netlink"}},
	{name: "5b", packages: []string{"switch/control"}},
	{name: "5c", packages: []string{"switch/observe"}, outside: []string{"*"}},
	{name: "6", packages: []string{"switch/control/*"}, outside: []string{"*"}},
	{name: "6", packages: []string{"cniplugin"}, only: []string{"cniplugin/podapi"}, outside: []string{"github.com/containernetworking/cni"}},
	{name: "7", packages: []string{"bench"}, outside: []string{"*"}},
	{name: "8", packages: []string{"cmd/tapyard"}, outside: []string{"*"}},
	{name: "8", packages: []string{"cmd/tapyard-cni"}, only: []string{"cniplugin", "cniplugin/podapi"}, outside: []string{"github.com/containernetworking/cni"}},
}

// leaves may be imported by any test and by nothing else; they import what they need.
var leaves = []string{"switch/port/porttest", "bench/nstest", "bench/seed"}

// topLevel is closed: nothing else may lie in the repository's first folder.
var topLevel = []string{"cmd", "switch", "fib", "encap", "cniplugin", "bench", "bin",
	"Makefile", "README.md", "LICENSE", "go.mod", "go.sum", ".ci", ".git", ".gitignore"}

// pkg is what `go list -json` says of a package; Imports are those of its non-test files.
type pkg struct {
	ImportPath, Doc string
	Imports, Deps   []string
}

func (p pkg) name() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Doc,Imports,Deps", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// rowOf returns the index of the package's row, or -1.
func rowOf(name string) int {
	return slices.IndexFunc(importTable, func(r row) bool { return matches(r.packages, name) })
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := filepath.Match(p, name)
		return ok
	})
}

func TestImports(t *testing.T) {
	for _, p := range listPackages(t) {
		if slices.Contains(leaves, p.name()) {
			continue
		}
		at := rowOf(p.name())
		if at < 0 {
			t.Errorf("%s has no row in the import table", p.name())
			continue
		}
		for _, imported := range p.Imports {
			if why := importTable[at].forbids(imported); why != "" {
				t.Errorf("%s (row %s) imports %s: %s", p.name(), importTable[at].name, imported, why)
			}
		}
	}
}

// forbids says why a package of the row may not import the path, or "".
func (r row) forbids(path string) string {
	name, ours := strings.CutPrefix(path, module+"/")
	switch {
	case !ours:
		return r.forbidsOutside(path)
	case slices.Contains(leaves, name):
		return "it is for tests only"
	case rowOf(name) < 0:
		return "it has no row in the import table"
	case importTable[rowOf(name)].name >= r.name:
		return fmt.Sprintf("it is in row %s, not above", importTable[rowOf(name)].name)
	case r.only != nil && !matches(r.only, name):
		return fmt.Sprintf("of our packages it may import %v only", r.only)
	case matches(r.except, name):
		return "the table excepts it"
	}
	return ""
}

func (r row) forbidsOutside(path string) string {
	first, _, _ := strings.Cut(path, "/")
	standard := !strings.Contains(first, ".")
	if standard || strings.HasPrefix(path, "golang.org/x/sys/") {
		return ""
	}
	for _, allowed := range r.outside {
		if allowed == "*" || path == allowed || strings.HasPrefix(path, allowed+"/") {
			return ""
		}
	}
	return fmt.Sprintf("beyond the standard library and x/sys it may import %v only", r.outside)
}

// The plugin starts with every pod, so that its size counts: nothing may pull in more behind its back.
func TestPluginStaysSmall(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.name() != "cmd/tapyard-cni" {
			continue
		}
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, "github.com/vishvananda/") || strings.HasPrefix(dep, module+"/switch") {
				t.Errorf("cmd/tapyard-cni depends on %s", dep)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.name())
		}
	}
}

// goFiles calls f for every Go file of the repository.
func goFiles(t *testing.T, f func(path string)) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir() && d.Name() == "internal":
			t.Errorf("%s: nobody imports a program, so that nothing need be hidden in internal/", path)
		case strings.HasSuffix(path, ".go"):
			f(path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFormatted(t *testing.T) {
	goFiles(t, func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		formatted, err := format.Source(text)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else if !bytes.Equal(text, formatted) {
			t.Errorf("%s is not as gofmt would have it", path)
		}
	})
}

func TestNoReplace(t *testing.T) {
	out, err := exec.Command("go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatalf("go mod edit -json: %v", err)
	}
	var mod struct {
		Module  struct{ Path string }
		Replace []any
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	if mod.Module.Path != module || len(mod.Replace) > 0 {
		t.Errorf("go.mod is of module %s and replaces %v", mod.Module.Path, mod.Replace)
	}
}

func TestTopLevelIsClosed(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(topLevel, e.Name()) {
			t.Errorf("%s lies at the top level, which is closed: %v", e.Name(), topLevel)
		}
	}
}

// The table itself is tested on imports that must and must not be.
func TestImportTableForbids(t *testing.T) {
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"switch/wire", "encoding/binary", true},
		{"switch/wire", "golang.org/x/sys/unix", true},
		{"switch/wire", "github.com/google/gopacket", false},
		{"switch/wire", "tapyard/switch/drop", false},
		{"switch/frame", "tapyard/switch/wire", true},
		{"switch/frame", "tapyard/fib", false},
		{"switch/port", "github.com/songgao/water", true},
		{"switch/port", "tapyard/switch", false},
		{"switch", "tapyard/switch/fdb", true},
		{"switch", "tapyard/encap", false},
		{"switch", "tapyard/switch/port/porttest", false},
		{"switch/control", "tapyard/switch/attach", true},
		{"switch/attach", "tapyard/switch/control", false},
		{"switch/control/static", "tapyard/switch/control", true},
		{"cniplugin", "tapyard/switch/control/static", false},
		{"cmd/tapyard-cni", "github.com/vishvananda/netlink", false},
		{"cmd/tapyard-cni", "tapyard/cniplugin", true},
		{"cmd/tapyard", "tapyard/bench", true},
		{"bench", "tapyard/cmd/tapyard", false},
	} {
		if why := importTable[rowOf(c.from)].forbids(c.to); (why == "") != c.ok {
			t.Errorf("%s imports %s: forbidden %q, want allowed %v", c.from, c.to, why, c.ok)
		}
	}
}
