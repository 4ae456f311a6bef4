package schedapi_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/mesos/mesos-go/api/v1/lib/agent"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/schedapi"
)

// A fakeAgent serves files as an agent does, 64 KiB at most at a time.
type fakeAgent struct {
	files             map[string][]byte
	old               bool // no operator API
	principal, secret string
	status            int // if set, the answer to everything
	requests          []string
}

func (a *fakeAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.requests = append(a.requests, r.Method+" "+r.URL.Path)
	if user, password, _ := r.BasicAuth(); user != a.principal || password != a.secret {
		http.Error(w, "401 Unauthorized.", http.StatusUnauthorized)
		return
	}
	switch {
	case a.status != 0:
		http.Error(w, http.StatusText(a.status), a.status)
	case r.URL.Path == "/api/v1" && !a.old:
		a.readFile(w, r)
	case r.URL.Path == "/files/read":
		a.filesRead(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (a *fakeAgent) readFile(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var call agent.Call
	if err != nil || call.Unmarshal(body) != nil || call.Type != agent.Call_READ_FILE {
		http.Error(w, "Failed to parse body into Call protobuf", http.StatusBadRequest)
		return
	}
	if call.ReadFile.Path == "/dir" {
		http.Error(w, "Cannot read a directory.", http.StatusBadRequest)
		return
	}
	data, ok := a.files[call.ReadFile.Path]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	part := data[min(int(call.ReadFile.Offset), len(data)):]
	part = part[:min(len(part), int(call.ReadFile.GetLength()), 64<<10)]
	response := agent.Response{Type: agent.Response_READ_FILE, ReadFile: &agent.Response_ReadFile{Size_: uint64(len(data)), Data: part}}
	encoded, err := response.Marshal()
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(encoded)
}

// filesRead writes the string as agents do: bytes that are not UTF-8 go as they
// are.
func (a *fakeAgent) filesRead(w http.ResponseWriter, r *http.Request) {
	data, ok := a.files[r.FormValue("path")]
	offset, err1 := strconv.Atoi(r.FormValue("offset"))
	length, err2 := strconv.Atoi(r.FormValue("length"))
	switch {
	case err1 != nil || err2 != nil || offset < -1:
		http.Error(w, "Failed to parse offset", http.StatusBadRequest)
		return
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		return
	case offset == -1:
		fmt.Fprintf(w, `{"data":"","offset":%d}`, len(data))
		return
	}
	part := data[min(offset, len(data)):]
	part = part[:min(len(part), length, 64<<10)]
	var quoted bytes.Buffer
	for _, b := range part {
		switch {
		case b == '"' || b == '\\' || b == '/':
			quoted.Write([]byte{'\\', b})
		case b == '\n':
			quoted.WriteString(`\n`)
		case b < 0x20 || b == 0x7f:
			fmt.Fprintf(&quoted, `\u%04x`, b)
		default:
			quoted.WriteByte(b)
		}
	}
	fmt.Fprintf(w, `{"data":"%s","offset":%d}`, quoted.Bytes(), offset)
}

// allBytes is n bytes of every value.
func allBytes(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * 7)
	}
	return data
}

func TestReadFilePageByPage(t *testing.T) {
	const name = "/frameworks/f/executors/e/runs/latest/build log"
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old=%v", old), func(t *testing.T) {
			want := allBytes(3*schedapi.MaxRead + 17)
			a := &fakeAgent{files: map[string][]byte{name: want}, old: old}
			server := httptest.NewServer(a)
			defer server.Close()
			f := schedapi.NewFiles(schedapi.FilesConfig{})
			defer f.Close()
			var got []byte
			for {
				data, size, err := f.ReadFile(t.Context(), server.URL+"/slave(1)", name, int64(len(got)), 1<<20)
				require.NoError(t, err)
				require.EqualValues(t, len(want), size)
				if len(data) == 0 {
					break
				}
				require.LessOrEqual(t, len(data), schedapi.MaxRead)
				got = append(got, data...)
			}
			require.True(t, bytes.Equal(want, got))

			data, size, err := f.ReadFile(t.Context(), server.URL, name, 10, 5)
			require.NoError(t, err)
			require.Equal(t, want[10:15], data)
			require.EqualValues(t, len(want), size)

			data, size, err = f.ReadFile(t.Context(), server.URL, name, 1<<40, 5)
			require.NoError(t, err)
			require.Empty(t, data)
			require.EqualValues(t, len(want), size)
		})
	}
}

func TestReadFileAsksOldWayOnlyWhereNeeded(t *testing.T) {
	a := &fakeAgent{files: map[string][]byte{"/a": []byte("x")}}
	server := httptest.NewServer(a)
	defer server.Close()
	f := schedapi.NewFiles(schedapi.FilesConfig{})
	defer f.Close()
	_, _, err := f.ReadFile(t.Context(), server.URL, "/b", 0, 1)
	require.ErrorIs(t, err, schedapi.ErrFileNotFound)
	require.Equal(t, []string{"POST /api/v1", "GET /files/read"}, a.requests)
	_, _, err = f.ReadFile(t.Context(), server.URL, "/a", 0, 1)
	require.NoError(t, err)
	a.requests = nil
	_, _, err = f.ReadFile(t.Context(), server.URL, "/b", 0, 1)
	require.ErrorIs(t, err, schedapi.ErrFileNotFound)
	require.Equal(t, []string{"POST /api/v1"}, a.requests)
	_, _, err = f.ReadFile(t.Context(), server.URL, "/dir", 0, 1)
	require.ErrorContains(t, err, "400 Cannot read a directory.")
	require.NotErrorIs(t, err, schedapi.ErrFileNotFound)
}

func TestReadFileErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed := l.Addr().String()
	require.NoError(t, l.Close())
	tests := []struct {
		name  string
		agent *fakeAgent
		want  error
	}{
		{"no such file", &fakeAgent{}, schedapi.ErrFileNotFound},
		{"no such file, old agent", &fakeAgent{old: true}, schedapi.ErrFileNotFound},
		{"forbidden", &fakeAgent{status: http.StatusForbidden}, schedapi.ErrFileForbidden},
		{"credentials", &fakeAgent{principal: "p", secret: "s"}, schedapi.ErrFileForbidden},
		{"recovering", &fakeAgent{status: http.StatusServiceUnavailable}, schedapi.ErrUnreachable},
		{"broken", &fakeAgent{status: http.StatusInternalServerError}, schedapi.ErrUnreachable},
		{"gone", nil, schedapi.ErrUnreachable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address := "http://" + closed
			if tt.agent != nil {
				server := httptest.NewServer(tt.agent)
				defer server.Close()
				address = server.URL
			}
			f := schedapi.NewFiles(schedapi.FilesConfig{})
			defer f.Close()
			_, _, err := f.ReadFile(t.Context(), address, "/x", 0, 10)
			require.ErrorIs(t, err, tt.want)
			require.ErrorContains(t, err, "read /x of agent "+address[len("http://"):])
		})
	}
	f := schedapi.NewFiles(schedapi.FilesConfig{})
	defer f.Close()
	_, _, err = f.ReadFile(t.Context(), "http://a", "/x", -1, 10)
	require.EqualError(t, err, "read /x: negative offset -1")
	_, _, err = f.ReadFile(t.Context(), "/x", "/x", 0, 10)
	require.EqualError(t, err, `agent address "/x" has no host`)
}

func TestReadFileTimeout(t *testing.T) {
	stop := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stop }))
	defer server.Close()
	defer close(stop)
	f := schedapi.NewFiles(schedapi.FilesConfig{Timeout: 20 * time.Millisecond})
	defer f.Close()
	_, _, err := f.ReadFile(t.Context(), server.URL, "/x", 0, 10)
	require.ErrorIs(t, err, schedapi.ErrUnreachable)
	require.ErrorContains(t, err, "no answer within 20ms")
}

func TestReadFileCredentialsOverTLS(t *testing.T) {
	a := &fakeAgent{files: map[string][]byte{"/a": []byte("x")}, principal: "p", secret: "s"}
	server := httptest.NewTLSServer(a)
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	f := schedapi.NewFiles(schedapi.FilesConfig{Principal: "p", Secret: "s", TLS: &tls.Config{RootCAs: roots}})
	defer f.Close()
	// Offers say http even so.
	data, _, err := f.ReadFile(t.Context(), "http://"+server.Listener.Addr().String()+"/slave(1)", "/a", 0, 10)
	require.NoError(t, err)
	require.Equal(t, "x", string(data))
}
