package storagetest

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Server is a storage server with a bucket called "staging". The caller kills it.
type Server struct {
	*Process
	Network, Address string // where it listens
}

// StartS3 runs Versity's gateway over directory dir, where it finds again what one
// before it had. Its socket is in there, too, so that the path must be short.
func StartS3(ctx context.Context, dir string) (*Server, error) {
	program, err := GoTool(ctx, "github.com/versity/versitygw/cmd/versitygw")
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"data/staging", "meta"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o777); err != nil {
			return nil, err
		}
	}
	socket := filepath.Join(dir, "socket")
	_ = os.Remove(socket) // of one that was killed
	p, err := start(program, "--access", "someone", "--secret", "right", "--port", socket, "--quiet", "--keep-alive",
		"posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
	if err != nil {
		return nil, err
	}
	return &Server{p, "unix", socket}, p.awaitListener(ctx, "unix", socket)
}

// S3Env is the environment of a client with the right or a wrong secret.
func S3Env(right bool) map[string]string {
	env := map[string]string{
		"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "guessed", "AWS_SESSION_TOKEN": "", "AWS_REGION": "us-east-1",
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	}
	if right {
		env["AWS_SECRET_ACCESS_KEY"] = "right"
	}
	return env
}

// S3URL is a bucket of the server at address.
func S3URL(address, bucket string) string {
	return "s3://" + bucket + "?use_path_style=true&endpoint=" + url.QueryEscape("http://"+address)
}

// The account that every Azurite has (Azurite's README).
const (
	azureAccount = "devstoreaccount1"
	azureKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// azurite is the version of Azurite that is run.
const azurite = "3.35.0"

var azuritePattern = regexp.MustCompile(`listens on http://(\S+)`)

// StartAzurite runs Azurite over directory dir. Azurite writes what it knows to disk
// now and then: one that is killed may have forgotten its newest containers, and that
// blobs are gone.
func StartAzurite(ctx context.Context, dir string) (*Server, error) {
	modules, err := NPM(ctx, "azurite", azurite)
	if err != nil {
		return nil, err
	}
	p, err := start("node", filepath.Join(modules, "node_modules", "azurite", "dist", "src", "blob", "main.js"),
		"--blobHost", "127.0.0.1", "--blobPort", "0", "--location", dir, "--disableTelemetry", "--skipApiVersionCheck")
	if err != nil {
		return nil, err
	}
	if err := p.await(ctx, "address", func() bool { return azuritePattern.MatchString(p.Output()) }); err != nil {
		return nil, err
	}
	s := &Server{p, "tcp", azuritePattern.FindStringSubmatch(p.Output())[1]}
	if err := createContainer(ctx, s.Address, "staging"); err != nil {
		p.Kill()
		return nil, err
	}
	return s, nil
}

// AzureEnv is the environment of a client with the right or a wrong key. The URL of a
// container is azblob://name.
func AzureEnv(address string, right bool) map[string]string {
	env := map[string]string{
		"AZURE_STORAGE_ACCOUNT": azureAccount, "AZURE_STORAGE_KEY": "Z3Vlc3NlZA==", "AZURE_STORAGE_DOMAIN": address, "AZURE_STORAGE_PROTOCOL": "http",
	}
	if right {
		env["AZURE_STORAGE_KEY"] = azureKey
	}
	return env
}

// createContainer makes a container in Azurite, unless there is one, by a request that is signed as
// Azure's "Authorize with Shared Key" tells.
func createContainer(ctx context.Context, address, name string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+address+"/"+azureAccount+"/"+name+"?restype=container", nil)
	if err != nil {
		return err
	}
	date := time.Now().UTC().Format(http.TimeFormat)
	req.Header.Set("X-Ms-Date", date)
	req.Header.Set("X-Ms-Version", "2021-12-02")
	key, err := base64.StdEncoding.DecodeString(azureKey)
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	// Twelve headers in between are not set.
	fmt.Fprintf(mac, "PUT%sx-ms-date:%s\nx-ms-version:2021-12-02\n/%s/%[3]s/%[4]s\nrestype:container", strings.Repeat("\n", 12), date, azureAccount, name)
	req.Header.Set("Authorization", "SharedKey "+azureAccount+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return request(req, http.StatusCreated, http.StatusConflict)
}

// StartGCS runs fake-gcs-server, which takes any credentials, over directory dir.
// Clients reach it at public.
func StartGCS(ctx context.Context, dir, public string) (*Server, error) {
	program, err := GoTool(ctx, "github.com/fsouza/fake-gcs-server")
	if err != nil {
		return nil, err
	}
	host, port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := start(program, "-scheme", "http", "-host", host, "-port", port, "-backend", "filesystem", "-filesystem-root", dir,
		"-external-url", "http://"+public, "-public-host", public, "-log-level", "warn")
	if err != nil {
		return nil, err
	}
	s := &Server{p, "tcp", host + ":" + port}
	if err := p.awaitListener(ctx, s.Network, s.Address); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.Address+"/storage/v1/b?project=test", strings.NewReader(`{"name": "staging"}`))
	if err == nil {
		req.Host = public // it tells its buckets from others' hosts
		req.Header.Set("Content-Type", "application/json")
		err = request(req, http.StatusOK, http.StatusConflict)
	}
	if err != nil {
		p.Kill()
		return nil, err
	}
	return s, nil
}

// GCSEnv is the environment of a client.
func GCSEnv(public string) map[string]string {
	return map[string]string{"STORAGE_EMULATOR_HOST": public}
}

// GCSURL is a bucket of the server that GCSEnv names.
func GCSURL(bucket string) string { return "gs://" + bucket + "?anonymous=true" }

// request makes a request that must be answered with one of codes.
func request(req *http.Request, codes ...int) error {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if !slices.Contains(codes, resp.StatusCode) {
		return fmt.Errorf("%s %s: %s", req.Method, req.URL.Path, resp.Status)
	}
	return nil
}
