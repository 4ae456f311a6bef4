package hdfsblob

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"gocloud.dev/blob"
)

// Schemes are the URL schemes that the default URL mux of gocloud.dev/blob opens
// with this package.
var Schemes = [...]string{"hdfs", "webhdfs", "swebhdfs"}

func init() {
	for _, scheme := range Schemes {
		blob.DefaultURLMux().RegisterBucket(scheme, &URLOpener{LookupEnv: os.LookupEnv})
	}
}

// A URLOpener opens URLs as the package's documentation tells.
type URLOpener struct {
	// Options are what URLs do not say otherwise.
	Options Options
	// LookupEnv looks up environment variables for delegation_env; nil knows none.
	LookupEnv func(string) (string, bool)
}

// The default ports of a namenode's web server since Hadoop 3
// (dfs.namenode.http-address and dfs.namenode.https-address in hdfs-default.xml).
const (
	httpPort  = "9870"
	httpsPort = "9871"
)

// OpenBucketURL opens a bucket.
func (o *URLOpener) OpenBucketURL(_ context.Context, u *url.URL) (*blob.Bucket, error) {
	fail := func(err error) (*blob.Bucket, error) {
		return nil, fmt.Errorf("open bucket %s://%s%s: %w", u.Scheme, u.Host, u.Path, err)
	}
	opts := o.Options
	if name := u.User.Username(); name != "" {
		opts.User = name
	}
	for key, values := range u.Query() {
		if len(values) != 1 {
			return fail(fmt.Errorf("the parameter %s is given %d times", key, len(values)))
		}
		value := values[0]
		switch key {
		case "user":
			opts.User = value
		case "delegation":
			opts.Token = value
		case "delegation_env":
			token, ok := "", false
			if o.LookupEnv != nil {
				token, ok = o.LookupEnv(value)
			}
			if !ok {
				return fail(fmt.Errorf("the environment has no variable %s, where delegation_env says the token is", value))
			}
			opts.Token = strings.TrimSpace(token)
		case "create_dir":
			switch value {
			case "true", "false":
				opts.CreateDir = value == "true"
			default:
				return fail(fmt.Errorf("create_dir=%s: it is true or false", value))
			}
		case "metadata":
			if value != "skip" {
				return fail(fmt.Errorf("metadata=%s: the only value is skip", value))
			}
			opts.SkipMetadata = true
		default:
			return fail(fmt.Errorf("unknown parameter %s", key))
		}
	}
	if q := u.Query(); q.Has("delegation") && q.Has("delegation_env") {
		return fail(errors.New("delegation and delegation_env exclude each other"))
	}
	nodes, err := namenodes(u.Scheme, u.Host)
	if err != nil {
		return fail(err)
	}
	dir := u.Path
	if dir == "" {
		dir = "/"
	}
	b, err := OpenBucket(nodes, dir, &opts)
	if err != nil {
		return fail(err)
	}
	return b, nil
}

// namenodes turns the host part of a URL, host:port or a list of them, into the
// addresses of web servers.
func namenodes(scheme, hosts string) ([]string, error) {
	if !slices.Contains(Schemes[:], scheme) {
		return nil, fmt.Errorf("unknown scheme %s", scheme)
	}
	web, port := "http", httpPort
	if scheme == "swebhdfs" {
		web, port = "https", httpsPort
	}
	var nodes []string
	for host := range strings.SplitSeq(hosts, ",") {
		name, _, err := net.SplitHostPort(host)
		if err != nil { // no port
			name = strings.Trim(host, "[]")
			host = net.JoinHostPort(name, port)
		}
		if name == "" {
			return nil, errors.New("a namenode's host is missing")
		}
		nodes = append(nodes, (&url.URL{Scheme: web, Host: host}).String())
	}
	return nodes, nil
}
