package seal

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
)

// maxURLs bounds the URLs of one message, as JSON.
const maxURLs = 32 << 20

// packURLs makes URLs small: those that one key has signed differ in little, and there
// may be thousands.
func packURLs(urls map[string]string) ([]byte, error) {
	if len(urls) == 0 {
		return nil, nil
	}
	data, err := json.Marshal(urls)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// unpackURLs reads what packURLs made.
func unpackURLs(packed []byte) (map[string]string, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, errMalformed
	}
	data, err := io.ReadAll(io.LimitReader(r, maxURLs))
	if err != nil {
		return nil, errMalformed
	}
	var urls map[string]string
	if json.Unmarshal(data, &urls) != nil {
		return nil, errMalformed
	}
	return urls, nil
}
