package observe

import (
	"encoding/json"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// query asks for flows as `show flows` does.
func (r *rig) query(v url.Values) (f Flows, err error) {
	raw, err := Client{r.socket}.Query(r.t.Context(), "flows", v)
	if err == nil {
		err = json.Unmarshal(raw, &f)
	}
	return f, err
}

// udpTo is what the pod sends to a peer's pod, from a port.
func udpTo(t *testing.T, to string, from uint16) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: podAddr4.AsSlice(), DstIP: netip.MustParseAddr(to).AsSlice()}
	udp := &layers.UDP{SrcPort: layers.UDPPort(from), DstPort: 53}
	must(t, udp.SetNetworkLayerForChecksum(ip))
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: podMAC[:], DstMAC: routerMAC[:], EthernetType: layers.EthernetTypeIPv4}, ip, udp))
	return buf.Bytes()
}

func TestFlowsAreSelected(t *testing.T) {
	r := newRig(t)
	if f, err := r.query(nil); err != nil || f.Enabled || f.Flows == nil {
		t.Errorf("%+v, %v; want none, as nothing is tracked", f, err)
	}
	r.Switch.SetFlows(true)
	r.pod.Inject(plain(udpTo(t, "10.244.2.3", 4001)), plain(udpTo(t, "10.244.2.4", 4001)), plain(udpTo(t, "10.244.2.4", 4002)))
	for deadline := time.Now().Add(20 * time.Second); r.Switch.Flows().Stats().Live < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v, want 3 live", r.Switch.Flows().Stats())
		}
	}
	for _, c := range []struct {
		query url.Values
		want  string
	}{
		{nil, "4001>10.244.2.3 4001>10.244.2.4 4002>10.244.2.4"},
		{FlowQuery{Limit: 2, VNI: -1}.Values(), "4001>10.244.2.3 4001>10.244.2.4"},
		{FlowQuery{Limit: 9, VNI: 1, Prefix: netip.MustParsePrefix("10.244.2.4/32")}.Values(), "4001>10.244.2.4 4002>10.244.2.4"},
		{FlowQuery{Limit: 9, VNI: -1, Prefix: netip.MustParsePrefix("10.244.1.0/24")}.Values(), "4001>10.244.2.3 4001>10.244.2.4 4002>10.244.2.4"},
		{FlowQuery{Limit: 9, VNI: 2}.Values(), ""},
	} {
		f, err := r.query(c.query)
		var got []string
		for _, e := range f.Flows {
			got = append(got, strings.TrimPrefix(e.From.String(), podAddr4.String()+":")+">"+e.To.Addr().String())
			if e.Protocol != "udp" || e.State != "unreplied" || e.Port != "default/web-0" || e.VNI != 1 || e.Timeout != 30 || time.Since(e.LastSeen) > time.Minute {
				t.Errorf("%+v", e)
			}
		}
		slices.Sort(got) // they may be of two seconds
		if len(c.want) > 0 && c.query.Get("limit") == "2" {
			if len(got) != 2 {
				t.Errorf("%v: %q", c.query, got)
			}
		} else if err != nil || strings.Join(got, " ") != c.want || !f.Enabled || f.Live != 3 || f.Created != 3 {
			t.Errorf("%v: %q, %v, %+v; want %q", c.query, got, err, f, c.want)
		}
	}
	for query, want := range map[string]string{"limit=0": "1 to 10000", "limit=10001": "1 to 10000", "address=10.244.1": "such as", "vni=16777216": "24 bits"} {
		v, _ := url.ParseQuery(query)
		if _, err := r.query(v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", query, err, want)
		}
	}
}

// The keys are a promise to scripts.
func TestFlowsHaveTheirKeys(t *testing.T) {
	raw, err := json.Marshal(Flows{Flows: []Flow{{}}})
	must(t, err)
	var got map[string]any
	must(t, json.Unmarshal(raw, &got))
	for keys, of := range map[string]map[string]any{
		"enabled capacity live created ended evicted dropped refused flows": got,
		"vni protocol from to state port last_seen timeout":                 got["flows"].([]any)[0].(map[string]any),
	} {
		if have, want := slices.Sorted(maps.Keys(of)), slices.Sorted(strings.FieldsSeq(keys)); !slices.Equal(have, want) {
			t.Errorf("keys %v, want %v", have, want)
		}
	}
}
