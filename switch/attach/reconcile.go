package attach

import (
	"context"
	"fmt"
)

// Reconcile is the Audit with repair of an agent that starts, once its pods are restored: what it finds is logged.
func (m *Manager) Reconcile(ctx context.Context) error {
	rows, err := m.Audit(ctx, true)
	if err != nil {
		return fmt.Errorf("compare records and devices: %w", err)
	}
	var last string
	for _, r := range rows {
		if r.Attachment == last {
			continue // its other address
		}
		last = r.Attachment
		for _, done := range r.Repaired {
			m.cfg.Log.Warn("repaired", "port", r.Owner, "attachment", r.Attachment, "what", done)
		}
		for _, wrong := range r.Wrong {
			m.cfg.Log.Error("found at the start", "port", r.Owner, "attachment", r.Attachment, "wrong", wrong)
		}
	}
	return nil
}
