package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// Handler serves the admin API: GET /v1/ready, a view as JSON under each name, the audit, and POST /v1/reload.
func (s *Source) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ready", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ready") })
	for name, view := range map[string]func() any{
		"ports":     func() any { return s.Ports() },
		"fdb":       func() any { return s.FDB() },
		"neighbors": func() any { return s.Neighbors() },
		"routes":    func() any { return s.Routes() },
		"peers":     func() any { return s.Peers() },
		"drops":     func() any { return s.Drops() },
		"offloads":  func() any { return s.Offloads() },
		"workers":   func() any { return s.Workers() },
		"config":    s.Config,
		"ledger":    func() any { return s.Ledger() },
	} {
		mux.HandleFunc("GET /v1/"+name, func(w http.ResponseWriter, _ *http.Request) { answer(w, view()) })
	}
	mux.HandleFunc("GET /v1/flows", s.serveFlows)
	mux.HandleFunc("GET /v1/audit", s.serveAudit)
	mux.HandleFunc("POST /v1/audit", s.serveAudit)
	if s.Reload != nil {
		mux.HandleFunc("POST /v1/reload", s.Reload)
	}
	return mux
}

func answer(w http.ResponseWriter, view any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(view) // the reader has gone; there is nobody to tell
}

// requestTimeout bounds what a half-open connection can hold.
const requestTimeout = 10 * time.Second

// Serve answers on the listener until ctx ends.
func (s *Source) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s.Handler(), ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, MaxHeaderBytes: 16 << 10,
		ConnState: new(conns).track}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); err != http.ErrServerClosed {
		return fmt.Errorf("admin socket: %w", err)
	}
	return nil
}

// ErrNoAgent is wrapped by a Client's error if nobody listens on the socket.
var ErrNoAgent = errors.New("no agent")

// Client asks an agent's admin socket.
type Client struct{ Socket string }

// Get decodes the view of that name into v.
func (c Client) Get(ctx context.Context, view string, v any) error {
	b, err := c.Raw(ctx, view)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("answer of %s to %s: %w", c.Socket, view, err)
	}
	return nil
}

// Raw returns the view of that name as JSON.
func (c Client) Raw(ctx context.Context, view string) ([]byte, error) { return c.Query(ctx, view, nil) }

// Query returns what the query selects of the view of that name, as JSON.
func (c Client) Query(ctx context.Context, view string, query url.Values) ([]byte, error) {
	return c.do(ctx, http.MethodGet, view, query)
}

// Post has the agent do something and returns what came of it, as JSON.
func (c Client) Post(ctx context.Context, action string) ([]byte, error) {
	return c.do(ctx, http.MethodPost, action, nil)
}

func (c Client) do(ctx context.Context, method, view string, query url.Values) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx, c.Socket)
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent/v1/"+url.PathEscape(view)+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return nil, c.unanswered(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("agent on %s: %s: %w", c.Socket, view, err)
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("the agent on %s doesn't know %q: it is of another version than this program; restart it", c.Socket, view)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("agent on %s: %s: %s: %s", c.Socket, view, resp.Status, bytes.TrimSpace(b))
	}
	return b, nil
}

// unanswered says why nobody answered, and what to do.
func (c Client) unanswered(err error) error {
	var why *net.OpError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: the socket %s is not there; start one ('systemctl start tapyard', or 'tapyard agent'), or name another by --socket or --node", ErrNoAgent, c.Socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens on %s, whose agent has ended; start it ('systemctl start tapyard', or 'tapyard agent'), or name another by --socket or --node", ErrNoAgent, c.Socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s belongs to the agent's user; ask as root", c.Socket)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the agent on %s gave no answer in %v; its log may say why", c.Socket, requestTimeout)
	case errors.As(err, &why):
		return fmt.Errorf("ask the agent on %s: %w", c.Socket, why.Err)
	}
	return fmt.Errorf("ask the agent on %s: %w", c.Socket, err)
}
