package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"tapyard/switch/wire"
)

var someAgent = agentID{1, 2, 3}

// typical is what a runtime under Kubernetes asks for.
func typical() Attachment {
	return Attachment{
		ContainerID: strings.Repeat("0123456789abcdef", 4), IfName: "eth0", Name: "kube-system/coredns-66bc5c9577-x2x7q",
		NetnsPath: "/var/run/netns/cni-0d1c3a52-1f4b-6a3c-9d5f-4f2e3b8a7c61", NetnsDev: 4, NetnsIno: 4026532201, BootID: "8d9b5a3e-6f9f-4a3b-b9a6-0d6f6d1c6a55",
		MAC: wire.MAC{0x0a, 1, 2, 3, 4, 5}, MTU: 1450, VNI: 0xabcdef, PortType: TAP, Created: time.Date(2026, 10, 17, 12, 34, 56, 789e6, time.UTC),
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.244.1.3/24"), netip.MustParsePrefix("fd00:10:244:1:89ab:cdef:123:4567/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00:10:244:1::1")}, Conflist: "tapyard",
	}
}

// placed is what remains of a record when the namespace and the boot are left to the place where the device is.
func placed(a Attachment) Attachment {
	a.NetnsPath, a.NetnsDev, a.NetnsIno, a.BootID = "", 0, 0, ""
	return a
}

func TestAliasHoldsTheRecord(t *testing.T) {
	whole := typical()
	l2 := whole
	l2.Addresses, l2.Gateways, l2.PortType, l2.VNI = nil, nil, Veth, 0
	for name, a := range map[string]Attachment{"typical": whole, "L2": l2} {
		s := someAgent.alias(a)
		key, c, err := parseAlias(s)
		if err != nil || key != a.Key() || c.agent != someAgent || c.short || !reflect.DeepEqual(c.a, placed(a)) {
			t.Errorf("%s: alias %s became %s, %+v, %v; want %+v", name, s, key, c, err, a)
		}
		t.Logf("%s: %d bytes", name, len(s))
	}
}

// A record's keys that this file doesn't know are in the copy as well, or it says that they are not.
func TestAliasHoldsFurtherKeys(t *testing.T) {
	a := typical()
	a.Name = "p"
	v := reflect.ValueOf(&a).Elem()
	for i := range v.NumField() {
		fill(v.Field(i))
	}
	_, c, err := parseAlias(someAgent.alias(a))
	if err != nil || !c.short && !reflect.DeepEqual(c.a, placed(a)) {
		t.Errorf("%+v became %+v, %v", a, c, err)
	}
}

// fill gives a field that is empty a value.
func fill(v reflect.Value) {
	if !v.IsZero() || !v.CanSet() {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("value")
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(42)
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(42)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[json.RawMessage]() {
			v.SetBytes([]byte(`{"key":"value"}`))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	}
}

// What does not fit is left out in this order: further keys and name, and in the end the copy; never the key.
func TestAliasThatDoesNotFit(t *testing.T) {
	for _, c := range []struct {
		id, name    int
		short, none bool
	}{{64, 40, false, false}, {64, 253, true, false}, {128, 253, true, false}, {200, 10, false, true}} {
		a := typical()
		a.ContainerID, a.IfName, a.Name = strings.Repeat("f", c.id), "eth0", strings.Repeat("n", c.name)
		s := someAgent.alias(a)
		key, got, err := parseAlias(s)
		if len(s) > 255 || key != a.Key() || !isAliasOf(s, key) || errors.Is(err, errNoCopy) != c.none || !c.none && err != nil || got.agent != someAgent || got.short != c.short {
			t.Errorf("%+v: alias %q is %q, %+v, %v", c, s, key, got, err)
		}
		if err == nil && fmt.Sprint(got.a.Addresses, got.a.MAC, got.a.VNI) != fmt.Sprint(a.Addresses, a.MAC, a.VNI) {
			t.Errorf("%+v: %+v became %+v", c, a, got)
		}
	}
}

func TestAliasOfAnother(t *testing.T) {
	s := someAgent.alias(typical())
	key := typical().Key()
	if !isAliasOf(s, key) || !isAliasOf("tapyard:"+key, key) {
		t.Errorf("%q is not of %q", s, key)
	}
	for _, other := range []string{key[:len(key)-1], key + "0", ""} {
		if isAliasOf(s, other) {
			t.Errorf("%q is of %q", s, other)
		}
	}
	for i := range s { // any bit
		damaged := []byte(s)
		damaged[i] ^= 1
		if key, c, err := parseAlias(string(damaged)); err == nil && strings.HasPrefix(string(damaged), aliasPrefix) {
			t.Errorf("%q is taken for %q, %+v", damaged, key, c)
		}
	}
}

// A pod may write into its device's alias.
func FuzzAlias(f *testing.F) {
	f.Add(someAgent.alias(typical()))
	f.Add("tapyard:c1/eth0")
	f.Fuzz(func(t *testing.T, s string) {
		key, c, err := parseAlias(s)
		if err != nil {
			return
		}
		again := c.agent.alias(c.a)
		if key != c.a.Key() {
			t.Fatalf("%q: key %q and record %+v", s, key, c.a)
		}
		if key2, c2, err := parseAlias(again); key2 != key || err == nil && fmt.Sprint(c2.a.Addresses, c2.a.MAC) != fmt.Sprint(c.a.Addresses, c.a.MAC) {
			t.Fatalf("%q became %q: %+v and %+v", s, again, c, c2)
		}
	})
}

// The checksum keeps the fuzzer out of what lies behind it.
func FuzzAliasCopy(f *testing.F) {
	c := deviceCopy{agent: someAgent, a: typical()}
	whole := c.encode("tapyard:c1/eth0", nil)
	f.Add(whole[:len(whole)-crcSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		const head = "tapyard:c1/eth0"
		sum := copySum(head, b)
		c := deviceCopy{a: Attachment{ContainerID: "c1", IfName: "eth0"}}
		if err := c.decode(head, append(b, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))); err != nil {
			return
		}
		for _, p := range c.a.Addresses {
			if !p.IsValid() {
				t.Fatalf("%v", c.a)
			}
		}
		if !plainName(strings.NewReplacer("/", "", "@", "").Replace(c.a.Name)) || c.a.VNI >= 1<<24 {
			t.Fatalf("%+v", c.a)
		}
	})
}
