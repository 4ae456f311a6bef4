package webhdfstest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// serveData answers for a datanode.
func (n *node) serveData(w *reply, r *http.Request, p, op string, fault Fault) error {
	q := r.URL.Query()
	user, err := n.user(q)
	if err != nil {
		return err
	}
	if !q.Has("namenoderpcaddress") {
		return illegal("the request did not come by a redirect: it has no namenoderpcaddress")
	}
	switch {
	case op == "OPEN" && r.Method == http.MethodGet:
		return n.open(w, r, q, user, p, fault)
	case op == "CREATE" && r.Method == http.MethodPut:
		return n.create(w, r, q, user, p, fault)
	case op == "APPEND" && r.Method == http.MethodPost:
		fs := n.c.fs
		fs.mu.Lock()
		f, err := fs.find(p)
		if err == nil {
			err = fs.allow(user, f, p, write)
		}
		fs.mu.Unlock()
		if err != nil {
			return err
		}
		if err := n.receive(r, f, p, fault); err != nil {
			return err
		}
		return nothing(w)
	default:
		return illegal("Invalid operation %s", op)
	}
}

func (n *node) create(w *reply, r *http.Request, q url.Values, user, p string, fault Fault) error {
	m, err := mode(q, 0o644)
	if err != nil {
		return err
	}
	overwrite, err := flag(q, "overwrite", false)
	if err != nil {
		return err
	}
	createParent, err := flag(q, "createparent", true)
	if err != nil {
		return err
	}
	fs := n.c.fs
	fs.mu.Lock()
	f, err := fs.create(user, p, m, overwrite, createParent)
	fs.mu.Unlock()
	if err != nil {
		return err
	}
	if err := n.receive(r, f, p, fault); err != nil {
		return err
	}
	w.Header().Set("Location", (&url.URL{Scheme: "hdfs", Host: q.Get("namenoderpcaddress"), Path: p}).String())
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}

// receive adds the body of a request to a file. What came before a connection breaks
// stays, as HdfsWriter leaves it.
func (n *node) receive(r *http.Request, f *inode, p string, fault Fault) error {
	buf := make([]byte, 256<<10)
	got := int64(0)
	for {
		part := buf
		for _, stop := range []int64{fault.BreakAfter, fault.StallAfter} {
			if stop > 0 && stop-got < int64(len(part)) {
				part = buf[:stop-got]
			}
		}
		k, err := r.Body.Read(part)
		got += int64(k)
		n.c.fs.mu.Lock()
		appendErr := n.c.fs.append(f, p, part[:k])
		n.c.fs.mu.Unlock()
		switch {
		case appendErr != nil:
			return appendErr
		case errors.Is(err, io.EOF):
			return nil
		case err != nil || fault.BreakAfter > 0 && got >= fault.BreakAfter:
			panic(http.ErrAbortHandler)
		case fault.StallAfter > 0 && got >= fault.StallAfter:
			n.stall(r)
		}
	}
}

func (n *node) open(w *reply, r *http.Request, q url.Values, user, p string, fault Fault) error {
	offset, err := number(q, "offset", 0)
	if err != nil {
		return err
	}
	length, err := number(q, "length", -1)
	if err != nil {
		return err
	}
	fs := n.c.fs
	fs.mu.Lock()
	f, err := fs.find(p)
	switch {
	case err != nil:
	case f.isDir():
		err = failure("java.io.FileNotFoundException", "Path is not a file: %s", p)
	case offset > f.size:
		err = failure("java.io.EOFException", "Cannot seek after EOF")
	default:
		err = fs.allow(user, f, p, read)
	}
	if err != nil {
		fs.mu.Unlock()
		return err
	}
	left := f.size - offset
	fs.mu.Unlock()
	if length >= 0 {
		left = min(left, length)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
	w.Header().Set("Connection", "close")
	w.direct = true
	w.WriteHeader(http.StatusOK)
	for sent := int64(0); left > 0; {
		fs.mu.Lock()
		part := f.readAt(offset)
		fs.mu.Unlock()
		part = part[:min(int64(len(part)), left, 256<<10)]
		if len(part) == 0 {
			return fmt.Errorf("%s has shrunk", p)
		}
		for _, stop := range []int64{fault.BreakAfter, fault.StallAfter} {
			if stop > 0 && stop-sent < int64(len(part)) {
				part = part[:stop-sent]
			}
		}
		k, err := w.ResponseWriter.Write(part)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		sent, offset, left = sent+int64(k), offset+int64(k), left-int64(k)
		switch {
		case fault.BreakAfter > 0 && sent >= fault.BreakAfter:
			http.NewResponseController(w.ResponseWriter).Flush()
			panic(http.ErrAbortHandler)
		case fault.StallAfter > 0 && sent >= fault.StallAfter:
			http.NewResponseController(w.ResponseWriter).Flush()
			n.stall(r)
		}
	}
	return nil
}
