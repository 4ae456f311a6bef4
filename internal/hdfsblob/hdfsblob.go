// Package hdfsblob keeps blobs in a Hadoop file system, over WebHDFS's REST API. It
// is a driver for gocloud.dev/blob: importing it makes blob.OpenBucket understand
//
//	hdfs://namenode:9870/dir
//	hdfs://nn1:9870,nn2:9870/dir   (high availability: whichever is active)
//	webhdfs://namenode:9870/dir    (the same thing)
//	swebhdfs://namenode:9871/dir   (the same over TLS)
//
// The port is that of the namenode's web server, 9870 when none is given (9871 with
// TLS), also after hdfs://: this package does not speak Hadoop's RPC protocol,
// whose port (8020) is another. HttpFS gateways understand the same API.
//
// These may stand in the query:
//
//   - user: who to act as where security is off (user.name). The URL's user
//     information, as in hdfs://me@namenode/dir, says the same.
//   - delegation: a Hadoop delegation token, as text. Where one is given no user is
//     sent: the token says whose it is.
//   - delegation_env: the name of an environment variable that holds the token, so
//     that the URL is no secret.
//   - create_dir=true: make the directory if it is missing. Otherwise that is an
//     error of the first write, and nothing is made.
//   - metadata=skip: neither keep nor read content types and metadata. Every blob
//     then is an application/octet-stream. For clusters without extended attributes.
//
// A blob is a file. Its name is its key, wherever HDFS and all the versions of
// WebHDFS can be trusted with it; other characters become __0x<hex>__. Files with
// names that this package would not have given are not listed. Content type and
// metadata are in the extended attribute user.gocloud.blob, which files without any
// do not have.
//
// A blob is written to a file .upload-<random> in the bucket's directory, which is
// renamed when it is whole: nobody ever sees a part of one. What killed writers left
// is removed by later writers after a week. New directories get the permission of the
// bucket's directory.
//
// Blobs that fit the buffer of a write (WriterOptions.BufferSize, 4 MiB when 0) are
// sent again after a failure; of larger ones only what comes before the first byte is
// tried again. A broken connection while reading is an error of that Reader.
package hdfsblob

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"gocloud.dev/blob"
)

// Options are how to speak to a cluster. The zero value acts as the web user that
// the cluster has configured.
type Options struct {
	// User is the name to act under where security is off.
	User string
	// Token is a delegation token in its URL-safe text form. User is not sent with one.
	Token string
	// CreateDir has the bucket's directory made by the first write that misses it.
	CreateDir bool
	// SkipMetadata leaves content types and metadata alone.
	SkipMetadata bool
	// StallTimeout is how long nothing may move in a request before it counts as
	// broken; 0 means a minute.
	StallTimeout time.Duration
	// Retries is how often a request is tried again, each time at all namenodes; 0
	// means 7, over some 11 seconds; less than 0 means never.
	Retries int
	// Client sends the requests; nil means one with the defaults of package net/http,
	// which honours HTTP_PROXY and its kin but uses no proxy for loopback addresses.
	// It needs no timeout of its own. Its CheckRedirect is not used.
	Client *http.Client
}

const (
	defaultStallTimeout = time.Minute
	defaultRetries      = 7
)

// OpenBucket returns a bucket of the files below dir, an absolute path. The
// namenodes are base URLs, such as http://nn1:9870; more than one are of the same
// cluster, and the active one is found. nil options mean the zero value. Nothing is
// sent before the bucket is used.
func OpenBucket(namenodes []string, dir string, opts *Options) (*blob.Bucket, error) {
	b, err := openBucket(namenodes, dir, opts)
	if err != nil {
		return nil, err
	}
	return blob.NewBucket(b), nil
}

func openBucket(namenodes []string, dir string, opts *Options) (*bucket, error) {
	if opts == nil {
		opts = &Options{}
	}
	if len(namenodes) == 0 {
		return nil, errors.New("open hdfs bucket: no namenode is given")
	}
	c := &client{
		user:    opts.User,
		token:   opts.Token,
		stall:   opts.StallTimeout,
		retries: opts.Retries,
	}
	if c.stall <= 0 {
		c.stall = defaultStallTimeout
	}
	if c.retries == 0 {
		c.retries = defaultRetries
	}
	for _, n := range namenodes {
		u, err := url.Parse(n)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("open hdfs bucket: namenode %q is not an http or https URL", redact(n))
		}
		c.nodes = append(c.nodes, &url.URL{Scheme: u.Scheme, Host: u.Host})
	}
	if !path.IsAbs(dir) || path.Clean(dir) != strings.TrimSuffix(dir, "/") && dir != "/" {
		return nil, fmt.Errorf("open hdfs bucket: directory %q must be an absolute path without . and .. in it", dir)
	}
	if opts.Client != nil {
		own := *opts.Client
		c.http = &own
	} else {
		c.http = &http.Client{Transport: newTransport()}
		c.ownTransport = true
	}
	// A redirect is an answer of ours to act on: its request must be another one.
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &bucket{
		client:       c,
		root:         path.Clean(dir),
		createDir:    opts.CreateDir,
		skipMetadata: opts.SkipMetadata,
	}, nil
}

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   16,
		ExpectContinueTimeout: time.Second,
		ReadBufferSize:        128 << 10,
		WriteBufferSize:       128 << 10,
	}
}

// redact hides what may be a password in something that should have been a URL.
func redact(s string) string {
	if at := strings.LastIndex(s, "@"); at >= 0 {
		return "…" + s[at:]
	}
	return s
}
