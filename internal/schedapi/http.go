package schedapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	path      = "/api/v1/scheduler"
	mediaType = "application/x-protobuf"

	streamHeader = "Mesos-Stream-Id"
)

// newTransport returns a transport for masters and agents, which speak HTTP/1.1
// only. Proxies are as the environment says; it never sends loopback through one.
func newTransport(config *tls.Config) *http.Transport {
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		TLSClientConfig:     config.Clone(),
		TLSHandshakeTimeout: 10 * time.Second,
		Protocols:           protocols,
		DisableCompression:  true,
		MaxIdleConns:        128,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     90 * time.Second,
	}
}

// newHTTPClient returns a client that leaves redirects to its caller.
func newHTTPClient(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// post sends one call. The stream ID is "" for SUBSCRIBE.
func (c *Client) post(ctx context.Context, base *url.URL, stream string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.String()+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Accept", mediaType)
	if stream != "" {
		req.Header.Set(streamHeader, stream)
	}
	if c.cfg.Principal != "" {
		req.SetBasicAuth(c.cfg.Principal, c.cfg.Secret)
	}
	return c.http.Do(req)
}

// discard reads what little there may be in the body of resp, so that the
// connection can be used again, and closes it.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // a failure only costs the connection
	resp.Body.Close()
}
