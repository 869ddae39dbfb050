package nstest

import (
	"os"
	"path/filepath"
	"testing"
)

// CNIPlugins returns the folder of containernetworking's plugins, of the version that this module was written
// against. `make test-deps` builds them there, since a private namespace has no network to fetch them by.
func CNIPlugins(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "tapyard", "cni-plugins-v1.9.1")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if os.Getenv("NETNS_REQUIRED") == "1" {
		t.Fatalf("%s is missing: run 'make test-deps'", dir)
	}
	t.Skipf("%s is missing: run 'make test-deps'", dir)
	return ""
}
