package schedapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mesos/mesos-go/api/v1/lib/agent"
)

// Errors of ReadFile to test for with errors.Is.
var (
	// ErrFileNotFound reports a file that is not there, or not there yet.
	ErrFileNotFound = errors.New("no such file on the agent")
	// ErrFileForbidden reports that the agent does not let this principal read
	// the file.
	ErrFileForbidden = errors.New("the agent forbids reading the file")
	// ErrUnreachable reports an agent that did not answer, or not in a sensible
	// way.
	ErrUnreachable = errors.New("agent unreachable")
)

// MaxRead is the most that an agent returns in one read (mesos
// src/files/files.cpp: 16 pages).
const MaxRead = 64 << 10

// FilesConfig says how to speak to agents.
type FilesConfig struct {
	// Principal and Secret are sent as HTTP basic credentials unless Principal
	// is "".
	Principal, Secret string
	// TLS, if not nil, means that agents speak https. What a master says about
	// them does not: the scheme in its offers is always http.
	TLS *tls.Config
	// Timeout bounds one read. Zero means 10 s.
	Timeout time.Duration
	// Transport carries all requests. Nil means one of the Files' own.
	Transport http.RoundTripper
}

// Files reads files in the sandboxes of agents. Its methods are safe for
// concurrent use.
type Files struct {
	cfg  FilesConfig
	http *http.Client

	mu     sync.Mutex
	modern map[string]bool // agents that have answered READ_FILE, by host
}

// NewFiles returns a Files. The caller closes it.
func NewFiles(cfg FilesConfig) *Files {
	defaultTo(&cfg.Timeout, 10*time.Second)
	if cfg.Transport == nil {
		cfg.Transport = newTransport(cfg.TLS)
	}
	return &Files{cfg: cfg, http: newHTTPClient(cfg.Transport), modern: make(map[string]bool)}
}

// Close closes idle connections.
func (f *Files) Close() { f.http.CloseIdleConnections() }

// ReadFile reads at most limit bytes of a file, and at most MaxRead, from offset
// on, and tells the file's size at that moment. agentURL is an agent's address as
// in its offers. At the end of the file data is empty.
//
// It asks for READ_FILE of the operator API, and where an agent does not have
// that, for /files/read.
func (f *Files) ReadFile(ctx context.Context, agentURL, path string, offset int64, limit int) (data []byte, size int64, err error) {
	base, err := f.base(agentURL)
	if err != nil {
		return nil, 0, err
	}
	if offset < 0 {
		return nil, 0, fmt.Errorf("read %s: negative offset %d", path, offset)
	}
	limit = max(min(limit, MaxRead), 0)
	ctx, cancel := context.WithTimeoutCause(ctx, f.cfg.Timeout, fmt.Errorf("no answer within %v: %w", f.cfg.Timeout, context.DeadlineExceeded))
	defer cancel()
	data, size, err = f.readFile(ctx, base, path, offset, limit)
	if errors.Is(err, errNoReadFile) && !f.isModern(base.Host) {
		data, size, err = f.filesRead(ctx, base, path, offset, limit)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read %s of agent %s: %w", path, base.Host, err)
	}
	return data, size, nil
}

func (f *Files) isModern(host string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.modern[host]
}

// errNoReadFile reports an answer that may mean that the agent is too old for the
// call.
var errNoReadFile = errors.New("READ_FILE refused")

// base returns the address of an agent's API. Offers have the path of the agent's
// own process in it, "/slave(1)", which is not needed.
func (f *Files) base(agentURL string) (*url.URL, error) {
	u, err := url.Parse(agentURL)
	if err != nil {
		return nil, fmt.Errorf("agent address: %w", err)
	}
	if u.Host == "" {
		return nil, fmt.Errorf("agent address %q has no host", agentURL)
	}
	base := &url.URL{Scheme: "http", Host: u.Host, Path: strings.TrimRight(u.Path, "/")}
	if f.cfg.TLS != nil || u.Scheme == "https" {
		base.Scheme = "https"
	}
	if strings.HasPrefix(base.Path, "/slave(") {
		base.Path = ""
	}
	return base, nil
}

func (f *Files) readFile(ctx context.Context, base *url.URL, path string, offset int64, limit int) ([]byte, int64, error) {
	length := uint64(limit)
	call := agent.Call{
		Type:     agent.Call_READ_FILE,
		ReadFile: &agent.Call_ReadFile{Path: path, Offset: uint64(offset), Length: &length},
	}
	body, err := call.Marshal()
	if err != nil {
		return nil, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.String()+"/api/v1", bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Accept", mediaType)
	answer, err := f.do(ctx, req)
	var status *StatusError
	if errors.As(err, &status) {
		switch status.Code {
		case http.StatusNotFound:
			return nil, 0, fmt.Errorf("%w (%w)", ErrFileNotFound, errNoReadFile)
		case http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusUnsupportedMediaType,
			http.StatusNotAcceptable, http.StatusBadRequest:
			return nil, 0, fmt.Errorf("%w: %w", errNoReadFile, err)
		}
	}
	if err != nil {
		return nil, 0, err
	}
	var response agent.Response
	if err := response.Unmarshal(answer); err != nil || response.ReadFile == nil {
		return nil, 0, fmt.Errorf("%w: the answer to READ_FILE is none", ErrUnreachable)
	}
	f.mu.Lock()
	f.modern[base.Host] = true
	f.mu.Unlock()
	return response.ReadFile.Data, int64(response.ReadFile.Size_), nil
}

// filesRead uses the older endpoint. It tells a size only when asked for nothing
// else, so the size is what is known of it: the end of what was read.
func (f *Files) filesRead(ctx context.Context, base *url.URL, path string, offset int64, limit int) ([]byte, int64, error) {
	get := func(offset int64, limit int) ([]byte, int64, error) {
		query := url.Values{"path": {path}, "offset": {strconv.FormatInt(offset, 10)}, "length": {strconv.Itoa(limit)}}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String()+"/files/read?"+query.Encode(), nil)
		if err != nil {
			return nil, 0, err
		}
		answer, err := f.do(ctx, req)
		var status *StatusError
		if errors.As(err, &status) && status.Code == http.StatusNotFound {
			return nil, 0, ErrFileNotFound
		}
		if err != nil {
			return nil, 0, err
		}
		var response struct {
			Offset int64           `json:"offset"`
			Data   json.RawMessage `json:"data"`
		}
		if err := json.Unmarshal(answer, &response); err != nil {
			return nil, 0, fmt.Errorf("%w: the answer of /files/read: %w", ErrUnreachable, err)
		}
		data, err := unquote(response.Data)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: the answer of /files/read: %w", ErrUnreachable, err)
		}
		return data, response.Offset, nil
	}
	_, size, err := get(-1, 0)
	if err != nil || offset >= size || limit == 0 {
		return nil, size, err
	}
	data, _, err := get(offset, limit)
	if err != nil {
		return nil, 0, err
	}
	if len(data) > limit {
		return nil, 0, fmt.Errorf("%w: /files/read returned %d bytes instead of %d", ErrUnreachable, len(data), limit)
	}
	return data, max(size, offset+int64(len(data))), nil
}

// do returns the body of a 200, or an error with the fitting sentinel; other
// answers are *StatusError.
func (f *Files) do(ctx context.Context, req *http.Request) ([]byte, error) {
	if f.cfg.Principal != "" {
		req.SetBasicAuth(f.cfg.Principal, f.cfg.Secret)
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, causeOf(ctx, withoutURL(err)))
	}
	if resp.StatusCode != http.StatusOK {
		status := newStatusError("read", resp)
		switch {
		case status.Code == http.StatusUnauthorized || status.Code == http.StatusForbidden:
			return nil, fmt.Errorf("%w: %s", ErrFileForbidden, status.text())
		case status.Code >= http.StatusInternalServerError && status.Code != http.StatusNotImplemented:
			return nil, fmt.Errorf("%w: %s", ErrUnreachable, status.text())
		}
		return nil, status
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16*MaxRead)) // a byte may become \u0000
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, causeOf(ctx, err))
	}
	return body, nil
}
