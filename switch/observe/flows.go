package observe

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"tapyard/switch/flow"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Flows is /v1/flows: the table's figures and the flows that were heard last. Without tracking all is zero.
type Flows struct {
	Enabled  bool   `json:"enabled"`
	Capacity int    `json:"capacity"`
	Live     int    `json:"live"`
	Created  uint64 `json:"created"`
	Ended    uint64 `json:"ended"`   // forgotten after silence, or replaced by a new connection after their end
	Evicted  uint64 `json:"evicted"` // forgotten before their time, since no place was free
	Dropped  uint64 `json:"dropped"` // with the port that began them
	Refused  uint64 `json:"refused"` // frames of flows that are not tracked, since the port had its share or no place was to be had
	Flows    []Flow `json:"flows"`
}

// Flow is a conversation.
type Flow struct {
	VNI      uint32         `json:"vni"`
	Protocol string         `json:"protocol"`
	From     netip.AddrPort `json:"from"` // who began it; of an echo, the port is its identifier
	To       netip.AddrPort `json:"to"`
	State    string         `json:"state"`
	Port     string         `json:"port"`      // of the switch, through which it began
	LastSeen time.Time      `json:"last_seen"` // up to a second too early
	Timeout  int32          `json:"timeout"`   // seconds of silence after which it is forgotten
}

// FlowQuery selects flows.
type FlowQuery struct {
	Limit  int          // 1 to MaxFlows
	Prefix netip.Prefix // of one of both ends; the zero value is any
	VNI    int64        // -1 is any
}

// A listing is bounded: 10,000 flows are 2 MB of JSON, and DefaultFlows what people read.
const (
	MaxFlows     = 10000
	DefaultFlows = 100
)

// Values returns the query as the admin API takes it.
func (q FlowQuery) Values() url.Values {
	v := url.Values{"limit": {strconv.Itoa(q.Limit)}}
	if q.Prefix.IsValid() {
		v.Set("address", q.Prefix.String())
	}
	if q.VNI >= 0 {
		v.Set("vni", strconv.FormatInt(q.VNI, 10))
	}
	return v
}

// parseFlowQuery is the inverse of Values; what is left out has its default.
func parseFlowQuery(v url.Values) (q FlowQuery, err error) {
	q = FlowQuery{Limit: DefaultFlows, VNI: -1}
	if s := v.Get("limit"); s != "" {
		if q.Limit, err = strconv.Atoi(s); err != nil || q.Limit < 1 || q.Limit > MaxFlows {
			return q, fmt.Errorf("limit %q: 1 to %d", s, MaxFlows)
		}
	}
	if s := v.Get("address"); s != "" {
		if q.Prefix, err = ParseAddrOrPrefix(s); err != nil {
			return q, err
		}
	}
	if s := v.Get("vni"); s != "" {
		if q.VNI, err = strconv.ParseInt(s, 10, 64); err != nil || q.VNI < 0 || q.VNI >= 1<<24 {
			return q, fmt.Errorf("vni %q: 0 to %d (24 bits)", s, 1<<24-1)
		}
	}
	return q, nil
}

// ParseAddrOrPrefix takes an address for the prefix that holds it alone.
func ParseAddrOrPrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("address %q: an address or a prefix, such as 10.244.1.3 or 10.244.0.0/16", s)
	}
	return p.Masked(), nil
}

func (q *FlowQuery) selects(e *flow.Entry) bool {
	return (q.VNI < 0 || uint32(q.VNI) == e.VNI) &&
		(!q.Prefix.IsValid() || q.Prefix.Contains(e.From.Addr()) || q.Prefix.Contains(e.To.Addr()))
}

var protocolNames = map[uint8]string{wire.ProtoTCP: "tcp", wire.ProtoUDP: "udp", wire.ProtoICMPv4: "icmp", wire.ProtoICMPv6: "icmpv6"}

// Flows returns the connection table's figures and the flows that the query selects, the most recent first.
func (s *Source) Flows(q FlowQuery) Flows {
	table := s.Switch.Flows()
	if table == nil {
		return Flows{Flows: []Flow{}}
	}
	st, names := table.Stats(), s.portNames()
	out := Flows{Enabled: true, Capacity: st.Capacity, Live: st.Live, Created: st.Created, Ended: st.Ended, Evicted: st.Evicted,
		Dropped: st.Dropped, Refused: st.Refused, Flows: []Flow{}}
	for _, e := range table.Entries(time.Now().UnixNano(), q.Limit, q.selects) {
		out.Flows = append(out.Flows, Flow{VNI: e.VNI, Protocol: protocolNames[e.Proto], From: e.From, To: e.To, State: e.State.String(),
			Port: names[port.ID(e.Owner)], LastSeen: time.Unix(e.LastSeen, 0).UTC(), Timeout: e.Timeout})
	}
	return out
}

// serveFlows answers GET /v1/flows?limit=&address=&vni=.
func (s *Source) serveFlows(w http.ResponseWriter, r *http.Request) {
	q, err := parseFlowQuery(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, s.Flows(q))
}
