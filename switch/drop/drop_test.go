package drop

import (
	"regexp"
	"testing"
)

// Names are metric labels: a missing or repeated one would merge or lose a count.
func TestEveryReasonIsNamedOnce(t *testing.T) {
	snake := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	seen := map[string]Reason{}
	for r := None; r < Count; r++ {
		if !snake.MatchString(r.String()) || r.Explain() == "" {
			t.Errorf("reason %d: name %q, explanation %q", r, r.String(), r.Explain())
		}
		if other, dup := seen[r.String()]; dup {
			t.Errorf("reasons %d and %d are both called %q", other, r, r.String())
		}
		seen[r.String()] = r
	}
}
