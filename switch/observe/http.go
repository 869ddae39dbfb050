package observe

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Handler serves the admin API: GET /v1/ready, and a view as JSON under each of Views.
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
		"config":    func() any { return s.Config },
		"ledger":    func() any { return s.Ledger() },
	} {
		mux.HandleFunc("GET /v1/"+name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(view()) // the reader has gone; there is nobody to tell
		})
	}
	return mux
}

// requestTimeout bounds what a half-open connection can hold.
const requestTimeout = 10 * time.Second

// Serve answers on the listener until ctx ends.
func (s *Source) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s.Handler(), ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); err != http.ErrServerClosed {
		return fmt.Errorf("admin socket: %w", err)
	}
	return nil
}

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
func (c Client) Raw(ctx context.Context, view string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.Socket)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/"+view, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("no agent answers on %s (is 'tapyard agent' running? --socket or --node names another): %w", c.Socket, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("agent on %s: %s: %s", c.Socket, resp.Status, b)
	}
	return b, err
}
