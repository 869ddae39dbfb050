package observe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"tapyard/switch/attach"
)

// serveAudit answers GET with what is wrong with the pods' addresses, and POST once it is repaired.
func (s *Source) serveAudit(w http.ResponseWriter, r *http.Request) {
	rows, err := s.Audit(r.Context(), r.Method == http.MethodPost)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	served := map[string]uint32{} // by the name of the port: the switch's own word
	for _, v := range s.Switch.Ports() {
		if v.Port != nil {
			served[v.Port.Name()] = v.VNI
		}
	}
	for i := range rows {
		r := &rows[i]
		if r.Published == nil || !*r.Published {
			continue
		}
		if vni, ok := served[r.Owner]; !ok || vni != r.VNI {
			*r.Published = false
			r.Wrong = append(r.Wrong, fmt.Sprintf("the switch has no port %s in VNI %d: restart the agent", r.Owner, r.VNI))
		}
	}
	if rows == nil {
		rows = []attach.Audited{}
	}
	answer(w, rows)
}

// Audit asks the agent to compare its pods' addresses with what is there, and to repair what it can.
func (c Client) Audit(ctx context.Context, repair bool) (rows []attach.Audited, err error) {
	method := http.MethodGet
	if repair {
		method = http.MethodPost
	}
	b, err := c.do(ctx, method, "audit", nil)
	if err == nil {
		err = json.Unmarshal(b, &rows)
	}
	return rows, err
}
