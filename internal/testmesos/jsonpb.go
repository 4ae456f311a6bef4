package testmesos

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// This file maps protobuf messages to JSON and back the way Mesos does (mesos
// 3rdparty/stout/include/stout/protobuf.hpp): snake_case names, enums by name,
// bytes in base64, and optional scalars with a default value always written.

// appendJSON appends the JSON of a message.
func appendJSON(b []byte, m message) []byte {
	return appendStruct(b, reflect.ValueOf(m).Elem())
}

func appendStruct(b []byte, v reflect.Value) []byte {
	b = append(b, '{')
	first := true
	for _, f := range fieldsOf(v.Type()) {
		fv := v.Field(f.index)
		if !isSet(f, fv) && !writesDefault(f, fv) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(strconv.AppendQuote(b, f.name), ':')
		if !isSet(f, fv) {
			b = appendDefault(b, f, fv.Type().Elem())
			continue
		}
		b = appendValue(b, f, fv)
	}
	return append(b, '}')
}

// isSet tells whether a field is to be written.
func isSet(f field, v reflect.Value) bool {
	switch {
	case f.repeated:
		return v.Len() > 0
	case v.Kind() == reflect.Pointer:
		return !v.IsNil()
	case f.required:
		return true
	case f.bytes:
		return !v.IsNil()
	}
	return !v.IsZero()
}

// writesDefault tells whether an unset field is written with its default
// value. The fields named role are deprecated, and for those Mesos does not.
func writesDefault(f field, v reflect.Value) bool {
	return f.hasDefault && f.name != "role" && v.Kind() == reflect.Pointer
}

func appendDefault(b []byte, f field, t reflect.Type) []byte {
	switch {
	case f.enum != nil:
		n, _ := strconv.Atoi(f.defaultVal)
		return appendString(b, f.enum.names[int32(n)])
	case t.Kind() == reflect.Bool:
		return strconv.AppendBool(b, f.defaultVal == "1")
	case t.Kind() == reflect.String:
		return appendString(b, f.defaultVal)
	case t.Kind() == reflect.Float64:
		n, _ := strconv.ParseFloat(f.defaultVal, 64)
		return appendFloat(b, n)
	}
	return append(b, f.defaultVal...)
}

func appendValue(b []byte, f field, v reflect.Value) []byte {
	if f.bytes {
		return appendString(b, base64.StdEncoding.EncodeToString(v.Bytes()))
	}
	switch v.Kind() {
	case reflect.Pointer:
		return appendValue(b, f, v.Elem())
	case reflect.Slice:
		b = append(b, '[')
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendValue(b, f, v.Index(i))
		}
		return append(b, ']')
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(x, y reflect.Value) int { return strings.Compare(x.String(), y.String()) })
		b = append(b, '{')
		for i, k := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, k.String()), ':')
			b = appendValue(b, f, v.MapIndex(k))
		}
		return append(b, '}')
	case reflect.Struct:
		return appendStruct(b, v)
	case reflect.String:
		return appendString(b, v.String())
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool())
	case reflect.Float32, reflect.Float64:
		return appendFloat(b, v.Float())
	case reflect.Int32, reflect.Int64, reflect.Int:
		if f.enum != nil {
			return appendString(b, f.enum.names[int32(v.Int())])
		}
		return strconv.AppendInt(b, v.Int(), 10)
	case reflect.Uint32, reflect.Uint64, reflect.Uint:
		return strconv.AppendUint(b, v.Uint(), 10)
	}
	panic(fmt.Sprintf("testmesos: field %s of kind %v", f.name, v.Kind()))
}

func appendFloat(b []byte, v float64) []byte {
	switch {
	case math.IsInf(v, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(v, -1):
		return append(b, `"-Infinity"`...)
	case math.IsNaN(v):
		return append(b, "null"...)
	case v == math.Trunc(v) && math.Abs(v) < 1e15:
		return append(strconv.AppendFloat(b, v, 'f', -1, 64), ".0"...)
	}
	return strconv.AppendFloat(b, v, 'g', -1, 64)
}

// appendString quotes s; bytes that are no UTF-8 are replaced, as they are
// when Mesos's answer is read by a JSON parser.
func appendString(b []byte, s string) []byte {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	_ = e.Encode(s)
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}

// parseJSON parses a text into values of encoding/json, with the messages
// that Mesos has for texts that are no JSON.
func parseJSON(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		offset := int64(len(text))
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok && !errors.Is(err, io.ErrUnexpectedEOF) {
			offset = min(max(syntax.Offset-1, 0), int64(len(text)))
			if strings.Contains(syntax.Error(), "unexpected end") {
				offset = int64(len(text))
			}
		}
		line := bytes.Count(text[:offset], []byte("\n")) + 1
		near, _, _ := bytes.Cut(text[offset:], []byte("\n"))
		return nil, fmt.Errorf("syntax error at line %d near: %s", line, near)
	}
	if rest := bytes.TrimSpace(text[d.InputOffset():]); len(rest) > 0 {
		return nil, says("Parsed JSON included non-whitespace trailing characters: %s", rest)
	}
	return v, nil
}

// unmarshalJSON fills a message from a value of parseJSON. It tells whether
// the top-level field typeField was set.
func unmarshalJSON(value any, m message, typeField string) (typed bool, err error) {
	object, ok := value.(map[string]any)
	if !ok {
		return false, says("Expecting a JSON object")
	}
	set, err := decodeObject(object, reflect.ValueOf(m).Elem())
	if err != nil {
		return false, err
	}
	if missing := set.missing(""); len(missing) > 0 {
		return false, says("Missing required fields: %s", strings.Join(missing, ", "))
	}
	return set.has[typeField], nil
}

// setFields is what a JSON object set in a message.
type setFields struct {
	fields []field
	has    map[string]bool
	nested []nestedFields
}

type nestedFields struct {
	name string
	set  *setFields
}

// missing lists the required fields that were not set, outer ones first.
func (s *setFields) missing(prefix string) []string {
	var names []string
	for _, f := range s.fields {
		if f.required && !s.has[f.name] {
			names = append(names, prefix+f.name)
		}
	}
	for _, n := range s.nested {
		names = append(names, n.set.missing(prefix+n.name+".")...)
	}
	return names
}

func decodeObject(object map[string]any, v reflect.Value) (*setFields, error) {
	set := &setFields{fields: fieldsOf(v.Type()), has: map[string]bool{}}
	names := make([]string, 0, len(object))
	for name := range object {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		i := slices.IndexFunc(set.fields, func(f field) bool { return f.name == name })
		if i < 0 || object[name] == nil {
			continue
		}
		if err := set.decode(set.fields[i], object[name], v.Field(set.fields[i].index), name); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// decode sets v, which is the field f or an element of it.
func (s *setFields) decode(f field, value any, v reflect.Value, path string) error {
	if list, ok := value.([]any); ok {
		if !f.repeated || v.Kind() != reflect.Slice {
			return unexpected("array", f)
		}
		for i, e := range list {
			if e == nil {
				continue
			}
			elem := reflect.New(v.Type().Elem()).Elem()
			if err := s.decode(f, e, elem, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
			v.Set(reflect.Append(v, elem))
		}
		return nil
	}
	if v.Kind() == reflect.Pointer {
		elem := reflect.New(v.Type().Elem())
		if err := s.decode(f, value, elem.Elem(), path); err != nil {
			return err
		}
		if s.has[f.name] {
			v.Set(elem)
		}
		return nil
	}
	switch value := value.(type) {
	case map[string]any:
		switch v.Kind() {
		case reflect.Map:
			return s.decodeMap(f, value, v, path)
		case reflect.Struct:
			nested, err := decodeObject(value, v)
			if err != nil {
				return err
			}
			s.has[f.name] = true
			s.nested = append(s.nested, nestedFields{path, nested})
			return nil
		}
		return unexpected("object", f)
	case string:
		return s.decodeString(f, value, v)
	case json.Number:
		return s.decodeNumber(f, value, v)
	case bool:
		if v.Kind() != reflect.Bool {
			return unexpected("boolean", f)
		}
		v.SetBool(value)
	}
	s.has[f.name] = true
	return nil
}

func (s *setFields) decodeMap(f field, object map[string]any, v reflect.Value, path string) error {
	v.Set(reflect.MakeMap(v.Type()))
	keys := make([]string, 0, len(object))
	for k := range object {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		elem := reflect.New(v.Type().Elem()).Elem()
		if err := s.decode(f, object[k], elem, path+".value"); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(k), elem)
	}
	s.has[f.name] = true
	return nil
}

func (s *setFields) decodeString(f field, value string, v reflect.Value) error {
	switch {
	case f.bytes:
		b, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return says("Failed to base64 decode bytes field '%s': %w", f.name, err)
		}
		v.SetBytes(b)
	case f.enum != nil:
		n, ok := f.enum.numbers[value]
		if !ok {
			if f.required {
				return says("Failed to find enum for '%s'", value)
			}
			return nil // an unknown name counts as unset
		}
		v.SetInt(int64(n))
	case v.Kind() == reflect.String:
		v.SetString(value)
	case v.Kind() == reflect.Bool:
		if value != "true" && value != "false" {
			return says("Failed to parse '%s' as a JSON boolean for field '%s': ", value, f.name)
		}
		v.SetBool(value == "true")
	case v.Kind() == reflect.Float64 && (value == "Infinity" || value == "-Infinity"):
		n, _ := strconv.ParseFloat(value, 64)
		v.SetFloat(n)
	case v.Kind() == reflect.Struct || v.Kind() == reflect.Map:
		return unexpected("string", f)
	default:
		number, err := parseJSON([]byte(value))
		n, ok := number.(json.Number)
		if err == nil && !ok {
			err = says("Unexpected JSON type found")
		}
		if err != nil {
			return says("Failed to parse '%s' as a JSON number for field '%s': %w", value, f.name, err)
		}
		return s.decodeNumber(f, n, v)
	}
	s.has[f.name] = true
	return nil
}

func (s *setFields) decodeNumber(f field, n json.Number, v reflect.Value) error {
	if f.enum != nil || f.bytes {
		return unexpected("number", f)
	}
	float, _ := n.Float64()
	switch v.Kind() {
	case reflect.Float32, reflect.Float64:
		v.SetFloat(float)
	case reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(n.String(), 10, 64)
		if err != nil {
			i = int64(float)
		}
		v.SetInt(i)
	case reflect.Uint32, reflect.Uint64:
		u, err := strconv.ParseUint(n.String(), 10, 64)
		if err != nil {
			u = uint64(int64(float))
		}
		v.SetUint(u)
	default:
		return unexpected("number", f)
	}
	s.has[f.name] = true
	return nil
}

func unexpected(kind string, f field) error {
	return says("Not expecting a JSON %s for field '%s'", kind, f.name)
}
