package podapi

import (
	"bytes"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for _, c := range []struct {
		id, ifName string
		ok         bool
	}{
		{strings.Repeat("a", 64), "eth0", true},
		{"cnitool-77383ca0a0715733ca6f", "net1", true},
		{"a_b.c-d", "fifteen-letters", true},
		{"", "eth0", false}, {"-a", "eth0", false}, {"a/b", "eth0", false}, {"a b", "eth0", false},
		{strings.Repeat("a", 201), "eth0", false}, {"a\n", "eth0", false},
		{"a", "", false}, {"a", ".", false}, {"a", "..", false}, {"a", "sixteen-letters!", false},
		{"a", "a/b", false}, {"a", "a:b", false}, {"a", "a b", false}, {"a", "a\x1b", false}, {"a", "\xff", false},
	} {
		if err := CheckNames(c.id, c.ifName); (err == nil) != c.ok {
			t.Errorf("CheckNames(%.70q, %q) = %v", c.id, c.ifName, err)
		}
	}
}

// Any bytes end in an error or in a request that survives the way back.
func FuzzRequest(f *testing.F) {
	r := request("ADD")
	r.Version, r.Netns, r.Args = Version, "/run/netns/x", "K8S_POD_NAME=a"
	seed, err := encode(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:20])
	f.Add([]byte("\x00\x00\x00\x2f" + `{"version":1,"command":"GC","ifName":"../../x"}`))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < lengthPrefixSize {
			return
		}
		body, err := readBody(bytes.NewReader(b[lengthPrefixSize:]), [lengthPrefixSize]byte(b))
		if err != nil {
			return
		}
		req, err := decodeRequest(body)
		if err != nil {
			return
		}
		if req.ContainerID+req.IfName != "" && CheckNames(req.ContainerID, req.IfName) != nil {
			t.Fatalf("bad names in %+v", req)
		}
		once := message(t, req)
		again, err := decodeRequest(once[lengthPrefixSize:])
		if err != nil || !bytes.Equal(message(t, again), once) {
			t.Fatalf("%q became %+v, %v", body, again, err)
		}
	})
}
