package attach

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/cniplugin/podapi"
	"tapyard/switch/wire"
)

// The alias of an attachment's device is "tapyard:" with the attachment's key, by which DEL finds the device, and
// behind a blank a copy of its record, out of which a damaged database is written anew. What is missing in the
// copy is found where the device is: the namespace's path and numbers, and the boot.
//
// The copy is, in base64: version, flags, agent, MAC; VNI, MTU and the time of making in milliseconds, as varints;
// addresses and gateways, each list and each part of it with its length before it, and the
// port's name likewise; the record's further keys as compressed JSON; a CRC-32C of the alias so far and all this.

const (
	aliasPrefix  = "tapyard:"
	maxAlias     = 255 // IFALIASZ less its zero
	aliasVersion = 1
	agentIDSize  = 3
	crcSize      = 4
	copyFixed    = 2 + agentIDSize + len(wire.MAC{})
	maxFurther   = 1 << 16 // bytes of JSON that a few dozen compressed ones may become
)

// Flags of a copy.
const (
	copyVeth  = 1 << iota // else TAP
	copyShort             // name and further keys did not fit
	copyNone              // nothing did, but the agent: the container's id is longer than those of runtimes (64 characters)
)

// errNoCopy is of an alias that says no more than whose device it is.
var errNoCopy = errors.New("there was no room for a copy of its record in its alias")

// agentID tells the devices of agents apart that share a host.
type agentID [agentIDSize]byte

// agentIDOf needs the state directory to be there: of two with the same path in two containers, which one process may
// see both, the file systems differ.
func agentIDOf(stateDir string) (id agentID, err error) {
	var st unix.Stat_t
	if stateDir, err = filepath.Abs(stateDir); err == nil {
		err = unix.Stat(stateDir, &st)
	}
	if err != nil {
		return id, fmt.Errorf("state directory %s: %w", stateDir, err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", st.Dev, stateDir))
	return agentID(sum[:]), nil
}

// deviceCopy is what a device's alias says.
type deviceCopy struct {
	agent agentID
	short bool // there is more in the record
	a     Attachment
}

var errCopyForm = errors.New("it has not the form of one")

// alias marks an attachment's device, so that nobody else's is ever removed, and holds as much of the record as
// fits: beside a container's id of 64 characters, an address of each family and their gateways, these are some 40
// bytes of name and further keys.
func (id agentID) alias(a Attachment) string {
	key := aliasPrefix + a.Key()
	unnamed := a
	unnamed.Name = ""
	further := furtherKeys(a)
	for _, c := range []struct {
		deviceCopy
		further []byte
	}{
		{deviceCopy{agent: id, a: a}, further},
		{deviceCopy{agent: id, a: unnamed, short: true}, further}, // the name is for people alone
		{deviceCopy{agent: id, a: a, short: true}, nil},
		{deviceCopy{agent: id, a: unnamed, short: true}, nil},
	} {
		if s := key + " " + base64.RawURLEncoding.EncodeToString(c.encode(key, c.further)); len(s) <= maxAlias {
			return s
		}
	}
	// 8 + 200 + 1 + 15 bytes of key leave room for 23.
	none := append([]byte{aliasVersion, copyNone}, id[:]...)
	none = binary.BigEndian.AppendUint32(none, copySum(key, none))
	return key + " " + base64.RawURLEncoding.EncodeToString(none)
}

// isAliasOf recognises the device of an attachment.
func isAliasOf(alias, key string) bool {
	rest, ok := strings.CutPrefix(alias, aliasPrefix+key)
	return ok && (rest == "" || rest[0] == ' ')
}

// copied are the record's keys that the copy holds in binary, or that go without saying.
var copied = []string{"containerID", "ifName", "name", "netnsPath", "netnsDev", "netnsIno", "bootID", "mac", "addresses", "gateways", "mtu", "vni", "portType", "created"}

// furtherKeys returns the record's other keys as compressed JSON, or nil if they are all empty.
func furtherKeys(a Attachment) []byte {
	var keys map[string]json.RawMessage
	text, err := json.Marshal(a)
	if err == nil {
		err = json.Unmarshal(text, &keys)
	}
	if err != nil {
		panic(err) // it is written as JSON into the database as well
	}
	maps.DeleteFunc(keys, func(key string, value json.RawMessage) bool {
		return slices.Contains(copied, key) || slices.Contains([]string{"null", `""`, "0", "false", "[]", "{}"}, string(value))
	})
	if len(keys) == 0 {
		return nil
	}
	text, _ = json.Marshal(keys) // they were JSON just now
	var out bytes.Buffer
	w := compressors.Get().(*flate.Writer)
	defer compressors.Put(w)
	w.Reset(&out)
	w.Write(text) // into memory
	w.Flush()
	return bytes.TrimSuffix(out.Bytes(), flushMark[:4])
}

// compressors are *flate.Writer with furtherWords. Each has some MiB of tables.
var compressors = sync.Pool{New: func() any {
	w, _ := flate.NewWriterDict(io.Discard, flate.BestCompression, furtherWords) // fails on other levels only
	return w
}}

// furtherWords are what the further keys' JSON probably says, the likeliest last.
var furtherWords = []byte(`{"queues":2,"conflist":"cbr0","conflist":"podman","conflist":"k8s-pod-network","conflist":"pods","conflist":"tapyard"}`)

// flushMark ends what a flush writes, and goes without saying, followed by an empty last block: as RFC 7692 section 7.2.1.
var flushMark = []byte{0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff}

func (c *deviceCopy) encode(key string, further []byte) []byte {
	flags := byte(0)
	if c.a.PortType == Veth {
		flags |= copyVeth
	}
	if c.short {
		flags |= copyShort
	}
	b := append([]byte{aliasVersion, flags}, c.agent[:]...)
	b = append(b, c.a.MAC[:]...)
	for _, n := range []uint64{uint64(c.a.VNI), uint64(c.a.MTU), uint64(c.a.Created.UnixMilli())} {
		b = binary.AppendUvarint(b, n)
	}
	b = binary.AppendUvarint(b, uint64(len(c.a.Addresses)))
	for _, p := range c.a.Addresses {
		b = appendPart(b, append(p.Addr().AsSlice(), byte(p.Bits())))
	}
	b = binary.AppendUvarint(b, uint64(len(c.a.Gateways)))
	for _, g := range c.a.Gateways {
		b = appendPart(b, g.AsSlice())
	}
	b = append(appendPart(b, []byte(c.a.Name)), further...)
	return binary.BigEndian.AppendUint32(b, copySum(key, b))
}

func appendPart(b, part []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(part))), part...)
}

func copySum(key string, b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum([]byte(key), table), table, b)
}

// parseAlias reads an alias that begins with aliasPrefix, which may have been changed by a pod. The key is there
// also with an error, unless it is no key.
func parseAlias(s string) (key string, c deviceCopy, err error) {
	head, text, _ := strings.Cut(s, " ")
	key = strings.TrimPrefix(head, aliasPrefix)
	c.a.ContainerID, c.a.IfName, _ = strings.Cut(key, "/")
	if err := podapi.CheckNames(c.a.ContainerID, c.a.IfName); err != nil {
		return "", c, fmt.Errorf("alias %q: %w", s, err)
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		err = c.decode(head, b)
	}
	if err != nil && err != errNoCopy {
		return key, c, fmt.Errorf("the copy of its record in its alias is damaged: %w", err)
	}
	return key, c, err
}

func (c *deviceCopy) decode(head string, b []byte) error {
	end := len(b) - crcSize
	if end < 2+agentIDSize || copySum(head, b[:end]) != binary.BigEndian.Uint32(b[end:]) {
		return errors.New("it does not match its checksum")
	}
	if b[0] != aliasVersion {
		return fmt.Errorf("it has version %d, this program knows %d", b[0], aliasVersion)
	}
	c.short, c.agent = b[1]&copyShort != 0, agentID(b[2:])
	if b[1]&copyNone != 0 {
		return errNoCopy
	}
	if end < copyFixed {
		return errCopyForm
	}
	r := &copyReader{b: b[copyFixed:end]}
	a := Attachment{ContainerID: c.a.ContainerID, IfName: c.a.IfName, MAC: wire.MAC(b[2+agentIDSize:]), PortType: TAP}
	if b[1]&copyVeth != 0 {
		a.PortType = Veth
	}
	a.VNI, a.MTU = uint32(r.number(1<<24-1)), int(r.number(1<<16))
	a.Created = time.UnixMilli(int64(r.number(math.MaxInt64 / 1_000_000))).UTC()
	for range r.number(maxAlias) {
		a.Addresses = append(a.Addresses, r.prefix())
	}
	for range r.number(maxAlias) {
		a.Gateways = append(a.Gateways, r.addr(r.part()))
	}
	a.Name = string(r.part())
	if r.failed || !plainName(strings.NewReplacer("/", "", "@", "").Replace(a.Name)) {
		return errCopyForm
	}
	return c.complete(a, r.b)
}

// complete adds the record's further keys, which come first: they are not to change the others.
func (c *deviceCopy) complete(a Attachment, further []byte) error {
	var all Attachment
	if len(further) > 0 {
		text, err := io.ReadAll(io.LimitReader(flate.NewReaderDict(bytes.NewReader(slices.Concat(further, flushMark)), furtherWords), maxFurther))
		if err == nil {
			err = json.Unmarshal(text, &all)
		}
		if err != nil {
			return err
		}
	}
	all.ContainerID, all.IfName, all.Name, all.MAC, all.Addresses, all.Gateways = a.ContainerID, a.IfName, a.Name, a.MAC, a.Addresses, a.Gateways
	all.MTU, all.VNI, all.PortType, all.Created = a.MTU, a.VNI, a.PortType, a.Created
	all.NetnsPath, all.NetnsDev, all.NetnsIno, all.BootID = "", 0, 0, ""
	c.a = all
	return nil
}

// copyReader takes a copy's parts off its front. Once one is missing or wrong, it has failed and gives zeroes.
type copyReader struct {
	b      []byte
	failed bool
}

func (r *copyReader) number(most uint64) uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > most {
		r.b, r.failed = nil, true
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *copyReader) part() []byte {
	n := r.number(uint64(len(r.b)))
	if n > uint64(len(r.b)) { // its own length was counted among them
		r.b, r.failed = nil, true
		return nil
	}
	part := r.b[:n]
	r.b = r.b[n:]
	return part
}

func (r *copyReader) addr(part []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(part)
	r.failed = r.failed || !ok
	return a
}

func (r *copyReader) prefix() netip.Prefix {
	part := r.part()
	if len(part) == 0 {
		r.failed = true
		return netip.Prefix{}
	}
	last := len(part) - 1
	p := netip.PrefixFrom(r.addr(part[:last]), int(part[last]))
	r.failed = r.failed || !p.IsValid()
	return p
}
