package webhdfstest

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// methods says how operations are called (GetOpParam, PutOpParam, PostOpParam,
// DeleteOpParam). A namenode knows others as illegal values of the parameter op.
var methods = map[string]string{
	"OPEN": http.MethodGet, "GETFILESTATUS": http.MethodGet, "LISTSTATUS": http.MethodGet, "LISTSTATUS_BATCH": http.MethodGet,
	"GETCONTENTSUMMARY": http.MethodGet, "GETHOMEDIRECTORY": http.MethodGet, "GETXATTRS": http.MethodGet, "LISTXATTRS": http.MethodGet,
	"CREATE": http.MethodPut, "MKDIRS": http.MethodPut, "RENAME": http.MethodPut, "SETPERMISSION": http.MethodPut, "SETOWNER": http.MethodPut,
	"SETTIMES": http.MethodPut, "SETXATTR": http.MethodPut, "REMOVEXATTR": http.MethodPut,
	"APPEND": http.MethodPost,
	"DELETE": http.MethodDelete,
}

// user returns who sends a request.
func (n *node) user(q url.Values) (string, error) {
	if want := n.c.opts.Token; want != "" {
		switch token := q.Get("delegation"); {
		case token == "":
			return "", failure("org.apache.hadoop.security.authentication.client.AuthenticationException", "Authentication required")
		case token != want:
			return "", failure("org.apache.hadoop.security.token.SecretManager$InvalidToken", "token (token for %s: HDFS_DELEGATION_TOKEN owner=%[1]s) can't be found in cache", n.c.opts.TokenUser)
		case q.Has("user.name") && q.Get("user.name") != n.c.opts.TokenUser:
			return "", failure("java.io.IOException", "Usernames not matched: name=%s != expected=%s", q.Get("user.name"), n.c.opts.TokenUser)
		}
		return n.c.opts.TokenUser, nil
	}
	name := q.Get("user.name")
	if name == "" {
		return "dr.who", nil // hadoop.http.staticuser.user
	}
	// dfs.webhdfs.user.provider.user.pattern
	if !userPattern.MatchString(name) {
		return "", illegal("Invalid value: \"%s\" does not belong to the domain %s", name, userPattern)
	}
	return name, nil
}

var userPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9._-]*[$]?$`)

func octal(mode uint16) string { return strconv.FormatUint(uint64(mode), 8) }

// mode reads the parameter permission.
func mode(q url.Values, otherwise uint16) (uint16, error) {
	s := q.Get("permission")
	if s == "" {
		return otherwise, nil
	}
	m, err := strconv.ParseUint(s, 8, 16)
	if err != nil || m > 0o1777 {
		return 0, illegal("Invalid value for webhdfs parameter \"permission\": \"%s\" is not an octal number", s)
	}
	return uint16(m), nil
}

// flag reads a boolean parameter (BooleanParam).
func flag(q url.Values, name string, otherwise bool) (bool, error) {
	switch s := strings.ToLower(q.Get(name)); s {
	case "":
		return otherwise, nil
	case "true", "false":
		return s == "true", nil
	default:
		return false, illegal("Invalid value for webhdfs parameter \"%s\": \"%s\" is not in {true, false}", name, s)
	}
}

// number reads a parameter that is not negative.
func number(q url.Values, name string, otherwise int64) (int64, error) {
	s := q.Get(name)
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, illegal("Invalid value for webhdfs parameter \"%s\": \"%s\"", name, s)
	}
	return n, nil
}

// serveName answers for a namenode.
func (n *node) serveName(w http.ResponseWriter, r *http.Request, p, op string) error {
	q := r.URL.Query()
	if methods[op] != r.Method {
		return illegal("Invalid value for webhdfs parameter \"op\": No enum constant org.apache.hadoop.hdfs.web.resources.%s.%s", r.Method, op)
	}
	user, err := n.user(q)
	if err != nil {
		return err
	}
	if err := checkPath(p); err != nil {
		return err
	}
	if r.ContentLength != 0 {
		// Data belongs to the datanode. A real one lets it lie in the connection.
		return illegal("the request to the namenode has a body")
	}
	n.c.fs.mu.Lock()
	defer n.c.fs.mu.Unlock()
	switch op {
	case "OPEN", "CREATE", "APPEND":
		return n.redirect(w, r, q, user, p, op)
	case "GETXATTRS", "LISTXATTRS", "SETXATTR", "REMOVEXATTR":
		return n.xattrs(w, q, user, p, op)
	}
	if r.Method == http.MethodGet {
		return n.show(w, q, user, p, op)
	}
	return n.change(w, q, user, p, op)
}

// redirect names the datanode to go to.
func (n *node) redirect(w http.ResponseWriter, r *http.Request, q url.Values, user, p, op string) error {
	if op != "CREATE" {
		f, err := n.c.fs.find(p)
		if err != nil {
			return failure("java.io.FileNotFoundException", "File %s not found.", p)
		}
		offset, err := number(q, "offset", 0)
		if err != nil {
			return err
		}
		if op == "OPEN" && offset != 0 && offset >= f.size {
			return failure("java.io.IOException", "Offset=%d out of the range [0, %d); OPEN, path=%s", offset, f.size, p)
		}
	}
	excluded := strings.Split(q.Get("excludedatanodes"), ",")
	var hosts []string
	for _, host := range n.c.Datanodes() {
		name, _, _ := strings.Cut(host, ":")
		if !slices.Contains(excluded, name) && !slices.Contains(excluded, host) {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) == 0 {
		return failure("java.io.IOException", "Failed to find datanode, suggest to check cluster health. excludeDatanodes=%s", q.Get("excludedatanodes"))
	}
	n.c.mu.Lock()
	host := hosts[n.c.turn%len(hosts)]
	n.c.turn++
	n.c.mu.Unlock()
	params := url.Values{"op": {op}, "namenoderpcaddress": {"127.0.0.1:8020"}}
	if n.c.opts.Token != "" {
		params.Set("delegation", q.Get("delegation"))
	} else if q.Has("user.name") {
		params.Set("user.name", user)
	}
	for _, name := range []string{"offset", "length", "overwrite", "permission", "createparent", "buffersize", "blocksize", "replication"} {
		if q.Has(name) {
			params.Set(name, q.Get(name))
		}
	}
	scheme := "http"
	if n.c.opts.TLS {
		scheme = "https"
	}
	to := &url.URL{Scheme: scheme, Host: host, Path: prefix + p, RawQuery: params.Encode()}
	if noRedirect, err := flag(q, "noredirect", false); err != nil {
		return err
	} else if noRedirect {
		writeJSON(w, http.StatusOK, map[string]string{"Location": to.String()})
		return nil
	}
	w.Header().Set("Location", to.String())
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// show answers the operations that change nothing.
func (n *node) show(w http.ResponseWriter, q url.Values, user, p, op string) error {
	if op == "GETHOMEDIRECTORY" {
		writeJSON(w, http.StatusOK, map[string]string{"Path": "/user/" + user})
		return nil
	}
	f, err := n.c.fs.find(p)
	if err != nil {
		return err
	}
	switch op {
	case "GETFILESTATUS":
		writeJSON(w, http.StatusOK, map[string]any{"FileStatus": f.status("")})
		return nil
	case "GETCONTENTSUMMARY":
		files, dirs, size := f.count()
		writeJSON(w, http.StatusOK, map[string]any{"ContentSummary": map[string]any{
			"directoryCount": dirs, "fileCount": files, "length": size, "quota": -1, "spaceConsumed": size, "spaceQuota": -1,
		}})
		return nil
	}
	if f.isDir() {
		if err := n.c.fs.allow(user, f, p, read); err != nil {
			return err
		}
	}
	names, statuses := f.list()
	if op == "LISTSTATUS" {
		writeJSON(w, http.StatusOK, map[string]any{"FileStatuses": map[string]any{"FileStatus": statuses}})
		return nil
	}
	const batch = 1000 // dfs.ls.limit
	begin, found := slices.BinarySearch(names, q.Get("startAfter"))
	if found {
		begin++
	}
	end := min(begin+batch, len(names))
	writeJSON(w, http.StatusOK, map[string]any{"DirectoryListing": map[string]any{
		"partialListing":   map[string]any{"FileStatuses": map[string]any{"FileStatus": statuses[begin:end]}},
		"remainingEntries": len(names) - end,
	}})
	return nil
}

// count returns how many files and directories are at f and below, and their size.
func (f *inode) count() (files, dirs int, size int64) {
	if !f.isDir() {
		return 1, 0, f.size
	}
	dirs = 1
	for _, child := range f.children {
		fs, ds, s := child.count()
		files, dirs, size = files+fs, dirs+ds, size+s
	}
	return files, dirs, size
}

// change answers the operations on names.
func (n *node) change(w http.ResponseWriter, q url.Values, user, p, op string) error {
	fs := n.c.fs
	boolean := func(b bool, err error) error {
		if err == nil {
			writeJSON(w, http.StatusOK, map[string]bool{"boolean": b})
		}
		return err
	}
	switch op {
	case "MKDIRS":
		m, err := mode(q, 0o755)
		if err != nil {
			return err
		}
		return boolean(fs.mkdirs(user, p, m))
	case "DELETE":
		recursive, err := flag(q, "recursive", false)
		if err != nil {
			return err
		}
		return boolean(fs.remove(user, p, recursive))
	case "RENAME":
		to := strings.TrimSuffix(q.Get("destination"), "/")
		if !strings.HasPrefix(to, "/") {
			return illegal("Invalid value for webhdfs parameter \"destination\": \"%s\" is not an absolute path.", to)
		}
		switch options := strings.ToUpper(q.Get("renameoptions")); {
		case options == "" || n.c.opts.NoRenameOptions:
			return boolean(fs.move(user, p, to))
		case options == "NONE", options == "OVERWRITE":
			if err := fs.moveStrictly(user, p, to, options == "OVERWRITE"); err != nil {
				return err
			}
			return nothing(w)
		default:
			return illegal("Invalid value for webhdfs parameter \"renameoptions\": %s", options)
		}
	}
	f, err := fs.find(p)
	if err != nil {
		return err
	}
	if user != f.owner && user != fs.superuser {
		return failure("org.apache.hadoop.security.AccessControlException", "Permission denied. user=%s is not the owner of inode=%s", user, p)
	}
	switch op {
	case "SETPERMISSION":
		if f.mode, err = mode(q, 0o755); err != nil {
			return err
		}
	case "SETOWNER":
		if q.Get("owner") == "" && q.Get("group") == "" {
			return illegal("Both owner and group are empty.")
		}
		if owner := q.Get("owner"); owner != "" {
			f.owner = owner
		}
	case "SETTIMES":
		ms, err := number(q, "modificationtime", -1)
		if err != nil {
			return err
		}
		if ms >= 0 {
			f.modified = time.UnixMilli(ms)
		}
	}
	return nothing(w)
}

func nothing(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	return nil
}

// xattrPattern is what names extended attributes have (XAttrNameParam).
var xattrPattern = regexp.MustCompile(`^(user\.|trusted\.|system\.|security\.|raw\.).+`)

// What extended attributes may be (dfs.namenode.fs-limits.max-xattr-size and
// max-xattrs-per-inode).
const (
	maxXAttr  = 16384
	maxXAttrs = 32
)

func (n *node) xattrs(w http.ResponseWriter, q url.Values, user, p, op string) error {
	fs := n.c.fs
	if fs.noXAttrs {
		return failure("java.io.IOException", "The XAttr operation has been rejected.  Support for XAttrs has been disabled by setting dfs.namenode.xattrs.enabled to false.")
	}
	f, err := fs.find(p)
	if err != nil {
		return err
	}
	access := uint16(read)
	if op == "SETXATTR" || op == "REMOVEXATTR" {
		access = write
	}
	if err := fs.allow(user, f, p, access); err != nil {
		return err
	}
	for _, name := range q["xattr.name"] {
		if !xattrPattern.MatchString(name) {
			return illegal("Invalid value for webhdfs parameter \"xattr.name\": \"%s\" does not belong to the domain %s", name, xattrPattern)
		}
	}
	name := q.Get("xattr.name")
	_, exists := f.xattrs[name]
	switch op {
	case "SETXATTR":
		value, err := decodeXAttr(q.Get("xattr.value"))
		if err != nil {
			return err
		}
		flags := strings.Split(q.Get("flag"), ",")
		create, replace := slices.Contains(flags, "CREATE"), slices.Contains(flags, "REPLACE")
		switch {
		case !create && !replace:
			return failure("org.apache.hadoop.HadoopIllegalArgumentException", "A flag must be specified.")
		case exists && !replace:
			return failure("java.io.IOException", "XAttr: %s already exists. The REPLACE flag must be specified.", name)
		case !exists && !create:
			return failure("java.io.IOException", "XAttr: %s does not exist. The CREATE flag must be specified.", name)
		case len(name)+len(value) > maxXAttr:
			return failure("org.apache.hadoop.HadoopIllegalArgumentException", "The XAttr is too big. The maximum combined size of the name and value is %d, but the total size is %d", maxXAttr, len(name)+len(value))
		case !exists && len(f.xattrs) == maxXAttrs:
			return failure("java.io.IOException", "Cannot add additional XAttr to inode, would exceed limit of %d", maxXAttrs)
		}
		if f.xattrs == nil {
			f.xattrs = map[string][]byte{}
		}
		f.xattrs[name] = value
		return nothing(w)
	case "REMOVEXATTR":
		if !exists {
			return failure("java.io.IOException", "No matching attributes found for remove operation")
		}
		delete(f.xattrs, name)
		return nothing(w)
	}
	wanted := q["xattr.name"]
	for _, name := range wanted {
		if _, ok := f.xattrs[name]; !ok {
			return failure("java.io.IOException", "At least one of the attributes provided was not found.")
		}
	}
	encoding := strings.ToUpper(q.Get("encoding"))
	attrs, names := []map[string]string{}, []string{}
	for name, value := range f.xattrs {
		if len(wanted) > 0 && !slices.Contains(wanted, name) {
			continue
		}
		names = append(names, name)
		attr := map[string]string{"name": name}
		switch encoding {
		case "", "TEXT":
			attr["value"] = strconv.Quote(string(value))
		case "HEX":
			attr["value"] = "0x" + hex.EncodeToString(value)
		case "BASE64":
			attr["value"] = "0s" + base64.StdEncoding.EncodeToString(value)
		default:
			return illegal("Invalid value for webhdfs parameter \"encoding\": %s", encoding)
		}
		attrs = append(attrs, attr)
	}
	if op == "LISTXATTRS" {
		writeJSON(w, http.StatusOK, map[string]any{"XAttrNames": "[\"" + strings.Join(names, "\",\"") + "\"]"})
		return nil
	}
	writeJSON(w, http.StatusOK, map[string]any{"XAttrs": attrs})
	return nil
}

// decodeXAttr reads a value as XAttrCodec does.
func decodeXAttr(s string) (value []byte, err error) {
	switch {
	case strings.HasPrefix(strings.ToLower(s), "0x"):
		value, err = hex.DecodeString(s[2:])
	case strings.HasPrefix(strings.ToLower(s), "0s"):
		value, err = base64.StdEncoding.DecodeString(s[2:])
	case len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"':
		value = []byte(s[1 : len(s)-1])
	default:
		value = []byte(s)
	}
	if err != nil {
		return nil, illegal("Invalid value for webhdfs parameter \"xattr.value\": %v", err)
	}
	return value, nil
}
