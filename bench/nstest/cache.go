package nstest

import (
	"os"
	"path/filepath"
	"testing"
)

// The Makefile builds these there, since a private namespace has no network to fetch them by.
const (
	cniPlugins = "cni-plugins-v1.9.1"
	containerd = "containerd-v2.3.6"
	criTools   = "cri-tools-v1.36.0"
)

// CNIPlugins returns the folder of containernetworking's plugins, of the version that this module was written
// against.
func CNIPlugins(t testing.TB) string {
	t.Helper()
	dir, err := cached(cniPlugins)
	if err != nil && os.Getenv("NETNS_REQUIRED") != "1" {
		t.Skipf("%v: run 'make test-deps'", err)
	}
	if err != nil {
		t.Fatalf("%v: run 'make test-deps'", err)
	}
	return dir
}

// Containerd returns the folder of containerd 2 and its shim, without which the test fails.
func Containerd(t testing.TB) string {
	t.Helper()
	return forLong(t, containerd)
}

// CRITools returns the folder of crictl, a client of CRI, without which the test fails.
func CRITools(t testing.TB) string {
	t.Helper()
	return forLong(t, criTools)
}

// forLong returns a folder that only long tests need.
func forLong(t testing.TB, name string) string {
	t.Helper()
	dir, err := cached(name)
	if err != nil {
		t.Fatalf("%v: run 'make runtime-deps'", err)
	}
	return dir
}

func cached(name string) (dir string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(cache, "tapyard", name)
	_, err = os.Stat(dir)
	return dir, err
}
