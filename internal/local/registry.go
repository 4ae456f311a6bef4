package local

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the driver that storage below names
	"github.com/sirupsen/logrus"
)

// A Registry is the CNCF distribution registry over a directory, on plain HTTP
// and without authentication.
type Registry struct {
	addr   string
	server *http.Server
	app    *handlers.App
	served chan error

	once     sync.Once
	closeErr error
}

// quiet silences the registry: it writes to logrus's standard logger, which
// cannot be replaced for one App. What goes wrong reaches the client that asked.
var quiet = sync.OnceFunc(func() { logrus.SetOutput(io.Discard) })

// StartRegistry serves a registry on addr ("127.0.0.1:0" takes a free port) with
// its data below dir, until Close.
func StartRegistry(addr, dir string) (*Registry, error) {
	quiet()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	config := &configuration.Configuration{
		Storage: configuration.Storage{
			"filesystem": configuration.Parameters{"rootdirectory": dir},
			"delete":     configuration.Parameters{"enabled": true},
			// The purger of abandoned uploads looks at files older than a week.
			"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	config.HTTP.Secret = rand.Text() // it signs the state of uploads in progress
	config.Catalog.MaxEntries = 1000

	r := &Registry{
		addr:   listener.Addr().String(),
		app:    handlers.NewApp(context.Background(), config), // its end is Close
		served: make(chan error, 1),
	}
	r.server = &http.Server{Handler: r.app, ReadHeaderTimeout: time.Minute}
	go func() { r.served <- r.server.Serve(listener) }()
	return r, nil
}

// Addr returns the registry's address as references spell it: "host:port".
func (r *Registry) Addr() string { return r.addr }

// Close stops the registry and cuts what it is still serving. Its data stays.
func (r *Registry) Close() error {
	r.once.Do(func() {
		err := r.server.Close()
		if served := <-r.served; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		if err = errors.Join(err, r.app.Shutdown()); err != nil {
			r.closeErr = fmt.Errorf("registry: %w", err)
		}
	})
	return r.closeErr
}
