// Package webhdfstest runs a small HDFS on loopback, as far as WebHDFS shows one: a
// namespace in memory, namenodes of which one is active, and datanodes to which they
// redirect. It refuses what a real cluster refuses, with the same answers, and breaks
// down as it is told to.
//
// What it answers follows Hadoop's own documentation (WebHDFS.md) and its sources
// (NamenodeWebHdfsMethods, WebHdfsHandler and both ExceptionHandlers). It has no
// blocks, no replication and no groups.
package webhdfstest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options say what kind of cluster to run. The zero value is one namenode and one
// datanode without security.
type Options struct {
	Namenodes int // 1 when 0
	Datanodes int // 1 when 0, at most 2: they are 127.0.0.1 and localhost
	// Token, if not empty, turns security on: every request must carry this delegation
	// token, which belongs to TokenUser.
	Token, TokenUser string
	// Superuser owns the root directory and may do anything; "hdfs" when empty.
	Superuser string
	// AnyoneWrites opens the root directory to all users.
	AnyoneWrites bool
	// Capacity is how many bytes all files together may have; 0 means no limit.
	Capacity int64
	NoXAttrs bool // dfs.namenode.xattrs.enabled=false
	// NoRenameOptions makes it like an HttpFS gateway, which does not read them.
	NoRenameOptions bool
	TLS             bool
}

// A Cluster is running until it is closed.
type Cluster struct {
	opts      Options
	fs        *namespace
	certs     *x509.CertPool
	closed    chan struct{}
	namenodes []*server
	datanodes []*server

	mu     sync.Mutex
	active int
	inject func(Request) *Fault
	log    []Request
	turn   int // which datanode is next
}

// A server is one node's listener.
type server struct {
	host string
	http *http.Server
	done chan struct{}
}

// Start runs a cluster. The caller closes it.
func Start(opts Options) (*Cluster, error) {
	if opts.Namenodes == 0 {
		opts.Namenodes = 1
	}
	if opts.Datanodes == 0 {
		opts.Datanodes = 1
	}
	if opts.Superuser == "" {
		opts.Superuser = "hdfs"
	}
	if opts.Datanodes > 2 {
		return nil, errors.New("webhdfstest: at most two datanodes")
	}
	c := &Cluster{opts: opts, closed: make(chan struct{})}
	c.fs = newNamespace(opts)
	var tlsConfig *tls.Config
	if opts.TLS {
		var err error
		if tlsConfig, c.certs, err = newCertificate(); err != nil {
			return nil, err
		}
	}
	for i := range opts.Namenodes {
		s, err := c.listen("127.0.0.1", tlsConfig, &node{c, i, false})
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.namenodes = append(c.namenodes, s)
	}
	for i := range opts.Datanodes {
		s, err := c.listen([]string{"127.0.0.1", "localhost"}[i], tlsConfig, &node{c, i, true})
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.datanodes = append(c.datanodes, s)
	}
	return c, nil
}

func (c *Cluster) listen(host string, tlsConfig *tls.Config, handler http.Handler) (*server, error) {
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		return nil, fmt.Errorf("webhdfstest: %w", err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if tlsConfig != nil {
		l = tls.NewListener(l, tlsConfig)
	}
	s := &server{
		host: net.JoinHostPort(host, port),
		http: &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		s.http.Serve(l) // until it is closed
	}()
	return s, nil
}

// Close stops all nodes and breaks all connections.
func (c *Cluster) Close() error {
	close(c.closed)
	var errs []error
	for _, s := range slices.Concat(c.namenodes, c.datanodes) {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

func (s *server) close() error {
	err := s.http.Close()
	<-s.done
	// Handlers see their connections break; a bounded wait for them.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(err, s.http.Shutdown(ctx))
}

// Namenodes returns the addresses, host:port, of the namenodes.
func (c *Cluster) Namenodes() []string {
	var hosts []string
	for _, s := range c.namenodes {
		hosts = append(hosts, s.host)
	}
	return hosts
}

// Datanodes returns the addresses of the datanodes.
func (c *Cluster) Datanodes() []string {
	var hosts []string
	for _, s := range c.datanodes {
		hosts = append(hosts, s.host)
	}
	return hosts
}

// URL returns a bucket's URL: scheme://namenodes/path.
func (c *Cluster) URL(scheme, path string) string {
	return scheme + "://" + strings.Join(c.Namenodes(), ",") + path
}

// Client returns a client that trusts the cluster's certificate.
func (c *Cluster) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: c.certs, MinVersion: tls.VersionTLS12},
	}}
}

// Activate makes one namenode the active one, and the others standby.
func (c *Cluster) Activate(namenode int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active = namenode
}

// StopNamenode ends a namenode as a crash does. It does not come back.
func (c *Cluster) StopNamenode(i int) error { return c.namenodes[i].close() }

// StopDatanode ends a datanode as a crash does; the namenodes do not notice.
func (c *Cluster) StopDatanode(i int) error { return c.datanodes[i].close() }

// A Request is one that came to a node.
type Request struct {
	Datanode bool
	Node     int // among its kind
	Method   string
	Op       string // in capitals
	Path     string // of the file
}

// A Fault is something that happens to a request. Of its parts the first that is set
// counts.
type Fault struct {
	// Status is answered instead of doing anything, with a RemoteException of that
	// class, or with an HTML page if Exception is empty.
	Status             int
	Exception, Message string
	// Break breaks the connection before anything is done, BreakReply when all is done,
	// and BreakAfter when so many bytes of a file have gone over it.
	Break, BreakReply bool
	BreakAfter        int64
	// Stall does nothing any more, until the client goes; StallAfter begins with it
	// when so many bytes of a file have gone over the connection.
	Stall      bool
	StallAfter int64
}

// Inject has decide called for every request from now on; nil ends that. It may be
// called from several goroutines at once. A nil fault lets the request pass.
func (c *Cluster) Inject(decide func(Request) *Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inject = decide
}

// Requests returns all requests so far, and forgets them.
func (c *Cluster) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	log := c.log
	c.log = nil
	return log
}

// SetCapacity changes how many bytes all files together may have; 0 means no limit.
func (c *Cluster) SetCapacity(n int64) {
	c.fs.mu.Lock()
	defer c.fs.mu.Unlock()
	c.fs.capacity = n
}

// Files returns the contents of all files, by path.
func (c *Cluster) Files() map[string][]byte { return c.fs.files() }

// Mkdir makes a directory, and those above it, for a user.
func (c *Cluster) Mkdir(path, user string) error {
	c.fs.mu.Lock()
	defer c.fs.mu.Unlock()
	_, err := c.fs.mkdirs(c.opts.Superuser, path, 0o755)
	if err != nil {
		return err
	}
	n, err := c.fs.find(path)
	if err != nil {
		return err
	}
	n.owner = user
	return nil
}

// WriteFile makes a file, as if someone had written it at that time.
func (c *Cluster) WriteFile(path string, content []byte, modified time.Time) error {
	c.fs.mu.Lock()
	defer c.fs.mu.Unlock()
	f, err := c.fs.create(c.opts.Superuser, path, 0o644, true, true)
	if err != nil {
		return err
	}
	if err := c.fs.append(f, path, content); err != nil {
		return err
	}
	f.modified = modified
	return nil
}

// node is the handler of one namenode or datanode.
type node struct {
	c        *Cluster
	i        int
	datanode bool
}

const prefix = "/webhdfs/v1"

func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, prefix)
	if !ok || rest != "" && rest[0] != '/' {
		http.NotFound(w, r)
		return
	}
	path := "/" + strings.Trim(rest, "/")
	req := Request{Datanode: n.datanode, Node: n.i, Method: r.Method, Op: strings.ToUpper(r.URL.Query().Get("op")), Path: path}
	n.c.mu.Lock()
	n.c.log = append(n.c.log, req)
	inject := n.c.inject
	standby := !n.datanode && n.c.active != n.i
	n.c.mu.Unlock()
	var fault Fault
	if inject != nil {
		if f := inject(req); f != nil {
			fault = *f
		}
	}
	switch {
	case fault.Status != 0 && fault.Exception != "":
		writeException(w, &exception{status: fault.Status, class: fault.Exception, message: fault.Message})
		return
	case fault.Status != 0:
		w.Header().Set("Content-Type", "text/html;charset=utf-8")
		w.WriteHeader(fault.Status)
		io.WriteString(w, "<html><body><h2>"+http.StatusText(fault.Status)+"</h2></body></html>")
		return
	case fault.Break:
		panic(http.ErrAbortHandler)
	case fault.Stall:
		n.stall(r)
	}
	out := &reply{ResponseWriter: w}
	var err error
	switch {
	case n.datanode:
		err = n.serveData(out, r, path, req.Op, fault)
	case standby:
		err = failure("org.apache.hadoop.ipc.StandbyException", "Operation category READ is not supported in state standby. Visit https://s.apache.org/sbnn-error")
	default:
		err = n.serveName(out, r, path, req.Op)
	}
	if err != nil {
		writeException(out, err)
	}
	if fault.BreakReply {
		panic(http.ErrAbortHandler)
	}
	out.flush()
}

// stall waits until the client or the cluster is gone.
func (n *node) stall(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-n.c.closed:
	}
	panic(http.ErrAbortHandler)
}

// A reply keeps small answers back, so that one can get lost.
type reply struct {
	http.ResponseWriter
	status int
	body   []byte
	direct bool
}

func (r *reply) WriteHeader(status int) {
	r.status = status
	if r.direct {
		r.ResponseWriter.WriteHeader(status)
	}
}

func (r *reply) Write(p []byte) (int, error) {
	if r.direct {
		return r.ResponseWriter.Write(p)
	}
	r.body = append(r.body, p...)
	return len(p), nil
}

func (r *reply) flush() {
	if r.direct {
		return
	}
	if r.status != 0 {
		r.ResponseWriter.WriteHeader(r.status)
	}
	r.ResponseWriter.Write(r.body)
}
