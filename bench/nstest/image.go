package nstest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// busyboxProgram is Debian's busybox-static.
const busyboxProgram = "/usr/bin/busybox"

// Image names an image that runs Server.
const Image = "tapyard.test/busybox:1"

// Server is a command for BusyboxImage: port 80 serves what Who asks for, and port 81 echoes.
const Server = "nc -ll -p 81 -e cat & exec httpd -f -p 80 -h /www"

// imageWho is GET /cgi-bin/who: the address that it is asked from, and the container's own first one.
const imageWho = `#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n%s %s\n' "$REMOTE_ADDR" "$(ip -4 -o address show dev eth0 | awk '{print $4}')"
`

// Who is the program `who ADDRESS PORT` of the image: what the Server there answers, which is the address that it was asked from,
// and its container's own first one. It isn't wget because Debian's static one dies where glibc's libraries aren't.
const Who = `#!/bin/sh
printf 'GET /cgi-bin/who HTTP/1.0\r\n\r\n' | busybox timeout 10 busybox nc "$1" "$2" | busybox tail -n 1
`

// BusyboxImage returns an archive in the OCI image layout, which container runtimes import without a registry.
// The image of that name holds busybox, and runs the shell's command.
func BusyboxImage(t testing.TB, name, command string) []byte {
	t.Helper()
	busybox, err := os.ReadFile(busyboxProgram)
	if err != nil {
		t.Fatalf("%v (Debian's package busybox-static: run 'make runtime-deps')", err)
	}
	var rootfs archive
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "www", "www/cgi-bin"} {
		rootfs.add(t, tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	rootfs.add(t, tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, applet := range strings.Fields("awk cat httpd ip nc ping sh sleep") {
		rootfs.add(t, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	rootfs.add(t, tar.Header{Name: "bin/who", Mode: 0o755}, []byte(Who))
	rootfs.add(t, tar.Header{Name: "www/cgi-bin/who", Mode: 0o755}, []byte(imageWho))

	var image archive
	layer := image.blob(t, "application/vnd.oci.image.layer.v1.tar", rootfs.bytes(t))
	config := image.blob(t, "application/vnd.oci.image.config.v1+json", asJSON(t, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}},
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"/bin/sh", "-c", command}}}))
	manifest := image.blob(t, "application/vnd.oci.image.manifest.v1+json", asJSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []descriptor{layer}}))
	// containerd takes the first of these names, podman the second one.
	manifest.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
	image.add(t, tar.Header{Name: "index.json", Mode: 0o644}, asJSON(t, map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}}))
	image.add(t, tar.Header{Name: "oci-layout", Mode: 0o644}, []byte(`{"imageLayoutVersion": "1.0.0"}`))
	return image.bytes(t)
}

// descriptor is the reference to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// archive is a tar file that grows; the zero value is empty.
type archive struct {
	text bytes.Buffer
	w    *tar.Writer
}

func (a *archive) add(t testing.TB, h tar.Header, content []byte) {
	t.Helper()
	if a.w == nil {
		a.w = tar.NewWriter(&a.text)
	}
	h.Size = int64(len(content))
	if err := a.w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := a.w.Write(content); err != nil {
		t.Fatal(err)
	}
}

// blob adds content under its digest.
func (a *archive) blob(t testing.TB, mediaType string, content []byte) descriptor {
	t.Helper()
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	a.add(t, tar.Header{Name: "blobs/sha256/" + sum, Mode: 0o644}, content)
	return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(content)}
}

func (a *archive) bytes(t testing.TB) []byte {
	t.Helper()
	if err := a.w.Close(); err != nil {
		t.Fatal(err)
	}
	return a.text.Bytes()
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
