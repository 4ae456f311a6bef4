package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
)

const (
	zooKeeperSession = 10 * time.Second
	zooKeeperRetry   = time.Second
	zooKeeperBuffer  = 16 << 20
)

// zooKeeper is a Resolver that follows the election of masters in ZooKeeper.
//
// Each master that stands for election keeps an ephemeral node json.info_N below
// the path; the one with the smallest N leads (mesos src/zookeeper/detector.cpp).
type zooKeeper struct {
	servers        []string
	path           string
	user, password string

	start sync.Once
	stop  context.CancelFunc
	done  chan struct{} // closed when watch has returned

	mu      sync.Mutex
	closed  bool
	node    string        // the leader's node, "" while none is known
	urls    []*url.URL    // the ways to reach it, to be tried in turn
	next    int           // index in urls
	err     error         // why none is known
	changed chan struct{} // closed and replaced when any of these change
}

// parseZooKeeper reads what follows "zk://".
func parseZooKeeper(rest string) (*zooKeeper, error) {
	z := &zooKeeper{path: "/", done: make(chan struct{}), changed: make(chan struct{})}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		var ok bool
		z.user, z.password, ok = strings.Cut(rest[:at], ":")
		if !ok || z.user == "" {
			return nil, errors.New("the credentials before @ are not user:password")
		}
		rest = rest[at+1:]
	}
	hosts, path, found := strings.Cut(rest, "/")
	if found {
		path = strings.TrimRight(path, "/")
		z.path = "/" + path
		if strings.Contains(z.path, "//") {
			return nil, fmt.Errorf("the path %q has an empty part", z.path)
		}
	}
	for host := range strings.SplitSeq(hosts, ",") {
		host, err := hostPort(strings.TrimSpace(host), zooKeeperPort)
		if err != nil {
			return nil, err
		}
		z.servers = append(z.servers, host)
	}
	return z, nil
}

func (z *zooKeeper) String() string {
	user := ""
	if z.user != "" {
		user = z.user + ":***@"
	}
	return "zk://" + user + strings.Join(z.servers, ",") + z.path
}

func (z *zooKeeper) Leader(ctx context.Context) (*url.URL, error) {
	z.mu.Lock()
	if z.closed {
		z.mu.Unlock()
		return nil, ErrClosed
	}
	z.start.Do(func() {
		var own context.Context
		own, z.stop = context.WithCancel(context.Background())
		go z.watch(own)
	})
	for {
		if z.closed {
			z.mu.Unlock()
			return nil, ErrClosed
		}
		if len(z.urls) > 0 {
			u := *z.urls[z.next]
			z.next = (z.next + 1) % len(z.urls)
			z.mu.Unlock()
			return &u, nil
		}
		changed := z.changed
		z.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			z.mu.Lock()
			defer z.mu.Unlock()
			if z.err != nil {
				return nil, fmt.Errorf("no leading master in %s: %w (%w)", z, z.err, ctx.Err())
			}
			return nil, fmt.Errorf("no leading master in %s: %w", z, ctx.Err())
		}
		z.mu.Lock()
	}
}

func (z *zooKeeper) Close() error {
	z.mu.Lock()
	z.closed = true
	z.notify()
	started := true
	z.start.Do(func() { started = false })
	z.mu.Unlock()
	if started {
		z.stop()
		<-z.done
	}
	return nil
}

// notify wakes every Leader. The caller holds mu.
func (z *zooKeeper) notify() {
	close(z.changed)
	z.changed = make(chan struct{})
}

// set records what is known. A failure to read keeps the leader known before:
// it probably leads still.
func (z *zooKeeper) set(node string, urls []*url.URL, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.err = err
	if err == nil && node == z.node {
		return
	}
	if err == nil {
		z.node, z.urls, z.next = node, urls, 0
	}
	z.notify()
}

// watch keeps the leader up to date until ctx is done.
func (z *zooKeeper) watch(ctx context.Context) {
	defer close(z.done)
	var dial lastError
	conn, events, err := zk.Connect(z.servers, zooKeeperSession,
		zk.WithHostProvider(&hosts{}), zk.WithDialer(dial.dial), zk.WithLogger(silent{}), zk.WithMaxBufferSize(zooKeeperBuffer))
	if err != nil {
		z.set("", nil, err)
		<-ctx.Done()
		return
	}
	closing := make(chan struct{})
	stopClosing := context.AfterFunc(ctx, func() {
		defer close(closing)
		conn.Close() // fails whatever call is under way
	})
	defer func() {
		if stopClosing() {
			conn.Close()
			close(closing)
		}
		<-closing
		for range events { // closed when the connection's own goroutine ends
		}
	}()
	authorized := z.user == ""
	for ctx.Err() == nil {
		var changed <-chan zk.Event
		var err error
		if !authorized {
			if err = conn.AddAuth("digest", []byte(z.user+":"+z.password)); err == nil {
				authorized = true
			}
		}
		if err == nil {
			changed, err = z.read(conn)
		}
		if err != nil {
			if why := dial.get(); errors.Is(err, zk.ErrNoServer) && why != nil {
				err = fmt.Errorf("%w: %w", err, why)
			}
			z.set("", nil, err)
			select {
			case <-ctx.Done():
			case <-time.After(zooKeeperRetry):
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// read finds the leader of this moment and returns a channel that fires when
// there may be another.
func (z *zooKeeper) read(conn *zk.Conn) (<-chan zk.Event, error) {
	children, _, changed, err := conn.ChildrenW(z.path)
	switch {
	case errors.Is(err, zk.ErrNoNode):
		return nil, fmt.Errorf("there is no %s: no master has ever stood for election there", z.path)
	case errors.Is(err, zk.ErrNoAuth):
		return nil, fmt.Errorf("%s may not be read with these credentials: %w", z.path, err)
	case err != nil:
		return nil, err
	}
	node, ok := leading(children)
	if !ok {
		z.set("", nil, nil)
		return changed, nil
	}
	data, _, err := conn.Get(strings.TrimRight(z.path, "/") + "/" + node)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node, err) // it may have gone in between
	}
	urls, err := decodeMasterInfo(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	z.set(node, urls, nil)
	return changed, nil
}

// leading returns the child with the smallest sequence number. What is not
// json.info_N is none of a master's: log_replicas, or info_N of old releases,
// each of which has a json.info_N beside it.
func leading(children []string) (string, bool) {
	best, bestSeq := "", int64(-1)
	for _, child := range children {
		digits, ok := strings.CutPrefix(child, "json.info_")
		if !ok {
			continue
		}
		seq, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || seq < 0 {
			continue
		}
		if bestSeq < 0 || seq < bestSeq {
			best, bestSeq = child, seq
		}
	}
	return best, bestSeq >= 0
}

// decodeMasterInfo returns the ways to reach the master that data, a MasterInfo
// in JSON, describes: by name, then by address.
func decodeMasterInfo(data []byte) ([]*url.URL, error) {
	var info struct {
		Address struct {
			Hostname string `json:"hostname"`
			IP       string `json:"ip"`
			Port     int    `json:"port"`
		} `json:"address"`
	}
	if err := json.Unmarshal(data, &info); err != nil {
		return nil, fmt.Errorf("not a MasterInfo: %w", err)
	}
	a := info.Address
	if a.Port < 1 || a.Port > 65535 {
		return nil, fmt.Errorf("MasterInfo without an address: port %d", a.Port)
	}
	var urls []*url.URL
	add := func(host string) {
		u := &url.URL{Host: net.JoinHostPort(host, strconv.Itoa(a.Port))}
		if len(urls) == 0 || urls[0].Host != u.Host {
			urls = append(urls, u)
		}
	}
	if a.Hostname != "" {
		add(a.Hostname)
	}
	if ip := net.ParseIP(a.IP); ip != nil && !ip.IsUnspecified() {
		add(a.IP)
	}
	if len(urls) == 0 {
		return nil, errors.New("MasterInfo without an address")
	}
	return urls, nil
}

// hosts is a zk.HostProvider that goes round the servers as given. Names are
// looked up at each dial, so that one unknown name does no harm and a server
// that moved is found again.
type hosts struct {
	mu        sync.Mutex
	servers   []string
	next      int
	untouched int // servers since the last one that worked
}

func (h *hosts) Init(servers []string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.servers = servers
	return nil
}

func (h *hosts) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.servers)
}

func (h *hosts) Next() (server string, retryStart bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	server = h.servers[h.next]
	h.next = (h.next + 1) % len(h.servers)
	retryStart = h.untouched > 0 && h.untouched%len(h.servers) == 0
	h.untouched++
	return server, retryStart
}

func (h *hosts) Connected() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.untouched = 0
}

// lastError is a dialer that remembers why it last failed, which zk does not
// tell.
type lastError struct {
	mu  sync.Mutex
	err error
}

func (l *lastError) dial(network, address string, timeout time.Duration) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, timeout)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	return conn, err
}

func (l *lastError) get() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

type silent struct{}

func (silent) Printf(string, ...any) {}
