package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// imbalance is a run whose frames don't add up: it gives no number.
type imbalance struct{ account string }

func (e *imbalance) Error() string {
	return "the run doesn't count, its frames don't balance: " + e.account
}

const (
	// roundsMost bounds how many rounds are tried for one that counts.
	roundsMost = 2
	// voidMost is how many runs of a peer are tried if none counts: nebula loses some frames of every burst, and counts none.
	voidMost = 3
)

// outcome is what the runs of one subject gave.
type outcome struct {
	runs    []values // by round; nil where it didn't count
	counted int
	void    error // of the last run that didn't count
}

// hopeless says that no more runs are tried. The first subject never is: of its runs, those that don't count are not kept.
func (o *outcome) hopeless() bool { return o.counted == 0 && len(o.runs) >= voidMost }

// interleave runs every subject in turn, A B A B, and makes rows of what they did. A run that doesn't count is left
// out, and so is the round if it is the first subject's; there are more rounds instead as long as roundsMost allows. A
// peer of which no run counts is noted; that none of the first subject's does is an error.
func (s *session) interleave(ctx context.Context, base string, metrics []metric, run func(context.Context, subject) (values, error)) ([]Row, error) {
	all := make([]outcome, len(s.subjects))
	for range roundsMost * s.cfg.Repeat {
		done := s.cfg.Repeat
		for i := range all {
			if !all[i].hopeless() {
				done = min(done, all[i].counted)
			}
		}
		if done == s.cfg.Repeat {
			break
		}
		if err := s.round(ctx, fmt.Sprintf("%s %d/%d", base, done+1, s.cfg.Repeat), metrics[0], all, run); err != nil {
			return nil, err
		}
	}
	if all[0].counted == 0 {
		return nil, fmt.Errorf("%s: no round counted: %w", base, all[0].void)
	}
	var names []string
	var runs [][]values
	for i, o := range all {
		names, runs = append(names, s.subjects[i].name()), append(runs, o.runs)
		if o.counted == 0 {
			s.note("%s: there is no figure of %s: %v", base, names[i], o.void)
		}
	}
	return rowsOf(base, metrics, names, runs), nil
}

// round runs each subject once that isn't hopeless.
func (s *session) round(ctx context.Context, title string, first metric, all []outcome, run func(context.Context, subject) (values, error)) error {
	for i, sub := range s.subjects {
		o := &all[i]
		if o.hopeless() {
			o.runs = append(o.runs, nil)
			continue
		}
		v, err := run(ctx, sub)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var uneven *imbalance
		switch {
		case errors.As(err, &uneven):
			s.say("%s %s: %v", title, sub.name(), err)
			v = nil
			if o.void = err; i == 0 {
				return nil
			}
		case err != nil:
			s.say("%s %s: %v", title, sub.name(), err)
			return fmt.Errorf("%s: %w", sub.name(), err)
		default:
			s.say("%s %s: %s %s", title, sub.name(), short(v[0]), first.unit)
			o.counted++
		}
		o.runs = append(o.runs, v)
	}
	return nil
}

// sayDisturbed says so when strangers took much of the machine's time during a run; see cpuUse.machineSeconds.
func (s *session) sayDisturbed(base string, sub subject, others, took time.Duration) {
	if disturbing(others, took) {
		s.say("%s %s: others used %.1f CPU seconds meanwhile, which are left out of the machine's", base, sub.name(), others.Seconds())
	}
}
