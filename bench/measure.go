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

// roundsMost bounds how many rounds are tried for one that counts.
const roundsMost = 2

// interleave runs every subject in turn, A B A B, and makes rows of what they did. A round with a run that
// doesn't count is left out, and another takes its place as long as roundsMost allows; that no round counts is an
// error.
func (s *session) interleave(ctx context.Context, base string, metrics []metric, run func(context.Context, subject) (values, error)) ([]Row, error) {
	names := make([]string, len(s.subjects))
	runs := make([][]values, len(s.subjects))
	for i, sub := range s.subjects {
		names[i] = sub.name()
	}
	var void error
	counted := 0
	for tried := 0; counted < s.cfg.Repeat && tried < roundsMost*s.cfg.Repeat; tried++ {
		figures, err := s.round(ctx, fmt.Sprintf("%s %d/%d", base, counted+1, s.cfg.Repeat), metrics, run)
		var uneven *imbalance
		switch {
		case errors.As(err, &uneven):
			void = err
			continue
		case err != nil:
			return nil, err
		}
		counted++
		for i := range figures {
			runs[i] = append(runs[i], figures[i])
		}
	}
	if counted == 0 {
		return nil, fmt.Errorf("%s: no round counted: %w", base, void)
	}
	return rowsOf(base, metrics, names, runs), nil
}

// round runs each subject once.
func (s *session) round(ctx context.Context, title string, metrics []metric, run func(context.Context, subject) (values, error)) ([]values, error) {
	var figures []values
	for _, sub := range s.subjects {
		v, err := run(ctx, sub)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			s.say("%s %s: %v", title, sub.name(), err)
			return nil, fmt.Errorf("%s: %w", sub.name(), err)
		}
		s.say("%s %s: %s %s", title, sub.name(), short(v[0]), metrics[0].unit)
		figures = append(figures, v)
	}
	return figures, nil
}

// sayDisturbed says so when strangers took much of the machine's time during a run; see cpuUse.machineSeconds.
func (s *session) sayDisturbed(base string, sub subject, others, took time.Duration) {
	if disturbing(others, took) {
		s.say("%s %s: others used %.1f CPU seconds meanwhile, which are left out of the machine's", base, sub.name(), others.Seconds())
	}
}
