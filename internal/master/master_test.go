package master_test

import (
	"context"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/master"
)

func TestParseListAsksInTurn(t *testing.T) {
	tests := []struct {
		name, spec string
		want       []string
	}{
		{"host and port", "m1:6060", []string{"//m1:6060", "//m1:6060"}},
		{"default port", "m1", []string{"//m1:5050"}},
		{"address", "10.0.0.1:5050", []string{"//10.0.0.1:5050"}},
		{"IPv6", "[::1]:5050", []string{"//[::1]:5050"}},
		{"IPv6 without port", "[::1]", []string{"//[::1]:5050"}},
		{"list", "m1:1,m2:2, m3", []string{"//m1:1", "//m2:2", "//m3:5050", "//m1:1"}},
		{"URL", "http://m1:5050", []string{"http://m1:5050"}},
		{"URL with the port of its scheme", "https://m1/", []string{"https://m1"}},
		{"URL with a prefix", "https://proxy/mesos/", []string{"https://proxy/mesos"}},
		{"list of URLs", "http://m1:5050,https://m2:5051", []string{"http://m1:5050", "https://m2:5051"}},
		{"space around", "  m1:1\n", []string{"//m1:1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := master.Parse(tt.spec)
			require.NoError(t, err)
			for _, want := range tt.want {
				u, err := r.Leader(t.Context())
				require.NoError(t, err)
				require.Equal(t, want, u.String())
			}
			require.NoError(t, r.Close())
			_, err = r.Leader(t.Context())
			require.ErrorIs(t, err, master.ErrClosed)
		})
	}
}

func TestParseListStopsWithContext(t *testing.T) {
	r, err := master.Parse("m1")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Leader(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ spec, want string }{
		{"", `master "": empty; give host:port, a list of them, or zk://host:port/path`},
		{"m1:", `master "m1:": "m1:" has no port between 1 and 65535`},
		{"m1:0", `master "m1:0": "m1:0" has no port between 1 and 65535`},
		{"m1:70000", `master "m1:70000": "m1:70000" has no port between 1 and 65535`},
		{":5050", `master ":5050": ":5050" has no host`},
		{"m1,,m2", `master "m1,,m2": a host is empty`},
		{"::1", `master "::1": "::1" is no host:port (an IPv6 address needs brackets)`},
		{"[m1]", `master "[m1]": "[m1]" is no IPv6 address`},
		{"m1/path", `master "m1/path": "m1/path" is no host name`},
		{"ftp://m1", `master "ftp://m1": scheme "ftp" is none of http, https and zk (zk:// cannot be in a list)`},
		{"m1,zk://z1/mesos", `master "m1,zk://z1/mesos": scheme "zk" is none of http, https and zk (zk:// cannot be in a list)`},
		{"http:///x", `master "http:///x": "http:///x" has no host`},
		{"http://u:p@m1", `master "http://u:***@m1": credentials do not belong in the URL; give principal and secret`},
		{"http://m1?x=y", `master "http://m1?x=y": "http://m1?x=y" has more than scheme, host and path`},
		{"http://m1:x", `master "http://m1:x": invalid port ":x" after host`},
		{"zk://", `master "zk://": a host is empty`},
		{"zk:///mesos", `master "zk:///mesos": a host is empty`},
		{"zk://z1,/mesos", `master "zk://z1,/mesos": a host is empty`},
		{"zk://user@z1/mesos", `master "zk://user@z1/mesos": the credentials before @ are not user:password`},
		{"zk://user:secret@z1:x/mesos", `master "zk://user:***@z1:x/mesos": "z1:x" has no port between 1 and 65535`},
		{"zk://z1/a//b", `master "zk://z1/a//b": the path "/a//b" has an empty part`},
	}
	for _, tt := range tests {
		t.Run(tt.spec, func(t *testing.T) {
			_, err := master.Parse(tt.spec)
			require.EqualError(t, err, tt.want)
		})
	}
}

func TestParseKeepsThePasswordOutOfString(t *testing.T) {
	r, err := master.Parse("zk://user:se:cr@et@z1,z2:2182/mesos/")
	require.NoError(t, err)
	require.Equal(t, "zk://user:***@z1:2181,z2:2182/mesos", r.String())
	require.NoError(t, r.Close())
}

func TestRedirect(t *testing.T) {
	const path = "/api/v1/scheduler"
	tests := []struct{ name, base, location, want string }{
		{"without scheme", "http://m1:5050", "//m2:5051/api/v1/scheduler", "http://m2:5051"},
		{"without scheme, to the master process", "http://m1:5050", "//m2:5051/master/api/v1/scheduler", "http://m2:5051/master"},
		{"without scheme or path", "https://m1:5050", "//m2:5051", "https://m2:5051"},
		{"host and port", "http://m1:5050", "m2:5051", "http://m2:5051"},
		{"host alone", "http://m1:5050", "m2", "http://m2:5050"},
		{"host, port and path", "https://m1:5050", "m2:5051/api/v1/scheduler", "https://m2:5051"},
		{"whole URL", "http://m1:5050", "http://m2:5051/api/v1/scheduler", "http://m2:5051"},
		{"whole URL with the port of its scheme", "http://m1", "https://proxy/mesos/api/v1/scheduler", "https://proxy/mesos"},
		{"IPv6", "http://m1:5050", "//[::1]:5051/api/v1/scheduler", "http://[::1]:5051"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base, err := url.Parse(tt.base)
			require.NoError(t, err)
			u, err := master.Redirect(base, tt.location, path)
			require.NoError(t, err)
			require.Equal(t, tt.want, u.String())
		})
	}
}

func TestRedirectRefuses(t *testing.T) {
	tests := []struct{ base, location, want string }{
		{"http://m1:5050", "", `master m1:5050 redirects to "": no location`},
		{"https://m1:5050", "http://m2:5050/", `master m1:5050 redirects to "http://m2:5050/": from https to http`},
		{"http://m1:5050", "ftp://m2/", `master m1:5050 redirects to "ftp://m2/": neither http nor https`},
		{"http://m1:5050", "/api/v1/scheduler", `master m1:5050 redirects to "/api/v1/scheduler": a host is empty`},
		{"http://m1:5050", "//", `master m1:5050 redirects to "//": a host is empty`},
		{"http://m1:5050", "http:///x", `master m1:5050 redirects to "http:///x": no host`},
		{"http://m1:5050", "//m2:x/", `master m1:5050 redirects to "//m2:x/": invalid port ":x" after host`},
	}
	for _, tt := range tests {
		t.Run(tt.location, func(t *testing.T) {
			base, err := url.Parse(tt.base)
			require.NoError(t, err)
			_, err = master.Redirect(base, tt.location, "/api/v1/scheduler")
			require.EqualError(t, err, tt.want)
		})
	}
}

func FuzzRedirect(f *testing.F) {
	f.Add("//h:1/api/v1/scheduler")
	f.Add("h:1")
	f.Add("https://[::1]/x")
	f.Fuzz(func(t *testing.T, location string) {
		u, err := master.Redirect(&url.URL{Scheme: "https", Host: "m:5050"}, location, "/api/v1/scheduler")
		if err == nil {
			require.Equal(t, "https", u.Scheme)
			require.NotEmpty(t, u.Hostname())
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("zk://u:p@h:1,h2/x")
	f.Add("h:1,http://x/y")
	f.Fuzz(func(t *testing.T, spec string) {
		r, err := master.Parse(spec)
		if err == nil {
			require.NoError(t, r.Close())
		}
	})
}
