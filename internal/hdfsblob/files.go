package hdfsblob

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"gocloud.dev/gcerrors"
)

// A fileStatus is WebHDFS's FileStatus, as far as we use it.
type fileStatus struct {
	PathSuffix       string `json:"pathSuffix"`
	Type             string `json:"type"`
	Length           int64  `json:"length"`
	Permission       string `json:"permission"`       // in octal
	ModificationTime int64  `json:"modificationTime"` // in milliseconds
	FileID           int64  `json:"fileId"`           // 0 from servers that do not tell
}

const (
	typeFile      = "FILE"
	typeDirectory = "DIRECTORY"
)

func (s *fileStatus) modTime() time.Time { return time.UnixMilli(s.ModificationTime) }

// same tells whether two statuses are of the same file, renamed or not.
func (s *fileStatus) same(o *fileStatus) bool {
	if s.FileID != 0 || o.FileID != 0 {
		return s.FileID == o.FileID
	}
	return s.Length == o.Length && s.ModificationTime == o.ModificationTime
}

func (s *fileStatus) etag() string {
	return fmt.Sprintf("\"%x-%x-%x\"", s.FileID, s.ModificationTime, s.Length)
}

func (c *client) stat(ctx context.Context, path string) (*fileStatus, error) {
	var answer struct{ FileStatus *fileStatus }
	if _, err := c.ask(ctx, request{method: http.MethodGet, op: "GETFILESTATUS", path: path}, &answer); err != nil {
		return nil, err
	}
	if answer.FileStatus == nil {
		return nil, fmt.Errorf("GETFILESTATUS %s: the answer has no FileStatus", path)
	}
	return answer.FileStatus, nil
}

// list returns what is in a directory, in no order. A file there is as good as
// missing.
func (c *client) list(ctx context.Context, path string) ([]fileStatus, error) {
	var answer struct {
		FileStatuses struct{ FileStatus []fileStatus }
	}
	if _, err := c.ask(ctx, request{method: http.MethodGet, op: "LISTSTATUS", path: path}, &answer); err != nil {
		return nil, err
	}
	all := answer.FileStatuses.FileStatus
	if len(all) == 1 && all[0].PathSuffix == "" {
		return nil, errorf(gcerrors.NotFound, "LISTSTATUS %s: it is not a directory", path)
	}
	return all, nil
}

// A truth is WebHDFS's boolean. Some operations answer nothing when they succeed.
type truth struct {
	Boolean *bool `json:"boolean"`
}

func (t truth) isFalse() bool { return t.Boolean != nil && !*t.Boolean }

// mkdirs makes a directory, and what is missing above it, with a permission, in octal;
// "" is the cluster's default.
func (c *client) mkdirs(ctx context.Context, path, permission string) error {
	r := request{method: http.MethodPut, op: "MKDIRS", path: path}
	if permission != "" {
		r = r.with("permission", permission)
	}
	var ok truth
	if _, err := c.ask(ctx, r, &ok); err != nil {
		return err
	}
	if ok.isFalse() {
		return fmt.Errorf("MKDIRS %s: the cluster did not do it", path)
	}
	return nil
}

// remove deletes a file, and returns false if there was none.
func (c *client) remove(ctx context.Context, path string) (bool, error) {
	var ok truth
	again, err := c.ask(ctx, request{method: http.MethodDelete, op: "DELETE", path: path, params: url.Values{"recursive": {"false"}}}, &ok)
	if err != nil {
		return false, err
	}
	return again || !ok.isFalse(), nil
}

// errParentMissing reports a rename into a directory that is not there.
var errParentMissing = errors.New("the directory is missing")

// rename gives the file from, which has that status, another name. What is there
// already it replaces, or else returns an error of class AlreadyExists.
func (c *client) rename(ctx context.Context, from string, status *fileStatus, to string, replace bool) error {
	// With options the namenode replaces a file in one step, or refuses to. The
	// documentation of WebHDFS does not name them
	// (org.apache.hadoop.hdfs.web.resources.RenameOptionSetParam).
	how := "NONE"
	if replace {
		how = "OVERWRITE"
	}
	r := request{method: http.MethodPut, op: "RENAME", path: from, params: url.Values{"destination": {to}, "renameoptions": {how}}}
	var ok truth
	_, err := c.ask(ctx, r, &ok)
	if err == nil && !ok.isFalse() {
		return nil
	}
	if err != nil && !isNotFound(err) && codeOf(err) != gcerrors.AlreadyExists {
		return err
	}
	there, statErr := c.stat(ctx, to)
	switch {
	case statErr == nil && there.same(status):
		return nil // an attempt whose answer was lost did it
	case statErr != nil && !isNotFound(statErr):
		return statErr
	case statErr == nil && there.Type != typeFile:
		return errorf(gcerrors.FailedPrecondition, "RENAME %s: %s is a directory", from, to)
	case statErr == nil && err != nil && !isNotFound(err):
		return err // it exists, and may not be replaced
	case statErr == nil && !replace:
		return errorf(gcerrors.AlreadyExists, "RENAME %s: %s exists", from, to)
	case statErr == nil && err == nil:
		// A server that knows no options says false to a name that is taken.
		if _, err := c.remove(ctx, to); err != nil {
			return err
		}
		return errTaken
	}
	if _, err := c.stat(ctx, from); err != nil {
		return err
	}
	return fmt.Errorf("RENAME %s to %s: %w", from, to, errParentMissing)
}

// errTaken reports a rename to a name that was taken, and is free now.
var errTaken = errors.New("the name was taken")

// xattrName is the extended attribute that holds attributes.
const xattrName = "user.gocloud.blob"

// attributes are what HDFS has no place for.
type attributes struct {
	CacheControl       string            `json:"cacheControl,omitempty"`
	ContentDisposition string            `json:"contentDisposition,omitempty"`
	ContentEncoding    string            `json:"contentEncoding,omitempty"`
	ContentLanguage    string            `json:"contentLanguage,omitempty"`
	ContentType        string            `json:"contentType,omitempty"`
	Metadata           map[string]string `json:"metadata,omitempty"`
}

const defaultContentType = "application/octet-stream"

func (a *attributes) isDefault() bool {
	return a.CacheControl == "" && a.ContentDisposition == "" && a.ContentEncoding == "" && a.ContentLanguage == "" &&
		(a.ContentType == "" || a.ContentType == defaultContentType) && len(a.Metadata) == 0
}

func (c *client) setAttributes(ctx context.Context, path string, a *attributes) error {
	doc, err := json.Marshal(a)
	if err != nil {
		return err
	}
	r := request{method: http.MethodPut, op: "SETXATTR", path: path, params: url.Values{
		"xattr.name":  {xattrName},
		"xattr.value": {"0s" + base64.StdEncoding.EncodeToString(doc)},
		"flag":        {"CREATE,REPLACE"}, // REPLACE, should the answer to CREATE get lost
	}}
	if _, err := c.ask(ctx, r, &struct{}{}); err != nil {
		return fmt.Errorf("keep the content type and metadata (metadata=skip does without): %w", err)
	}
	return nil
}

func (c *client) attributes(ctx context.Context, path string) (*attributes, error) {
	a := &attributes{}
	var answer struct {
		XAttrs []struct{ Name, Value string }
	}
	_, err := c.ask(ctx, request{method: http.MethodGet, op: "GETXATTRS", path: path, params: url.Values{"encoding": {"BASE64"}}}, &answer)
	if err != nil {
		switch exception(err) {
		case "IOException", "UnsupportedOperationException", "IllegalArgumentException":
			// Clusters that keep no extended attributes, or know none.
			a.ContentType = defaultContentType
			return a, nil
		}
		return nil, err
	}
	for _, x := range answer.XAttrs {
		if x.Name != xattrName {
			continue
		}
		doc, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(x.Value, "0s"))
		if err == nil {
			err = json.Unmarshal(doc, a)
		}
		if err != nil {
			return nil, fmt.Errorf("GETXATTRS %s: %s: %w", path, xattrName, err)
		}
	}
	if a.ContentType == "" {
		a.ContentType = defaultContentType
	}
	return a, nil
}
