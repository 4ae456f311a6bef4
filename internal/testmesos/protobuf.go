package testmesos

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/gogo/protobuf/proto"
)

// A message is a protobuf message of mesos-go.
type message interface {
	proto.Message
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// A field describes one protobuf field of a mesos-go struct. mesos-go keeps
// many optional and required fields by value, so whether such a field was set
// is known only while a message is decoded.
type field struct {
	index      int
	name       string
	number     int
	required   bool
	repeated   bool // a list or a map
	bytes      bool
	hasDefault bool
	defaultVal string
	enum       *enum
}

// An enum maps the names of a protobuf enum to numbers and back.
type enum struct {
	names   map[int32]string
	numbers map[string]int32
}

// structFields caches the fields of a struct, in the order of declaration.
var structFields sync.Map // reflect.Type -> []field

// newerEnumValues holds enum values that Mesos 1.12 knows and mesos-go, made
// for 1.10, does not.
var newerEnumValues = map[string]map[string]int32{
	"mesos.executor.Call_Type":         {"HEARTBEAT": executorHeartbeat},
	"mesos.MasterInfo_Capability_Type": {"QUOTA_V2": masterQuotaV2},
}

const (
	executorHeartbeat = 4 // executor.Call.HEARTBEAT
	masterQuotaV2     = 3 // MasterInfo.Capability.QUOTA_V2
)

// fieldsOf returns the protobuf fields of a struct type.
func fieldsOf(t reflect.Type) []field {
	if v, ok := structFields.Load(t); ok {
		return v.([]field)
	}
	var fields []field
	for i := range t.NumField() {
		sf := t.Field(i)
		tag := sf.Tag.Get("protobuf")
		if tag == "" {
			continue
		}
		f := field{index: i, bytes: sf.Type == reflect.TypeFor[[]byte]()}
		for n, part := range strings.Split(tag, ",") {
			key, value, _ := strings.Cut(part, "=")
			switch {
			case n == 1:
				_, _ = fmt.Sscan(part, &f.number)
			case n == 2:
				f.required = part == "req"
				f.repeated = part == "rep"
			case key == "name":
				f.name = value
			case key == "enum":
				f.enum = enumOf(value)
			case key == "def":
				f.hasDefault = true
				f.defaultVal = value
			}
		}
		fields = append(fields, f)
	}
	structFields.Store(t, fields)
	return fields
}

func enumOf(name string) *enum {
	e := &enum{names: map[int32]string{}, numbers: map[string]int32{}}
	for _, values := range []map[string]int32{proto.EnumValueMap(name), newerEnumValues[name]} {
		for s, n := range values {
			e.names[n], e.numbers[s] = s, n
		}
	}
	return e
}

// hasField tells whether an encoded message sets a top-level field.
func hasField(b []byte, number int) bool {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return false
		}
		if int(tag>>3) == number {
			return true
		}
		b = b[n:]
		switch tag & 7 {
		case 0:
			_, n = binary.Uvarint(b)
		case 1:
			n = 8
		case 2:
			size, m := binary.Uvarint(b)
			if m <= 0 || size > uint64(len(b)) {
				return false
			}
			n = m + int(size)
		case 5:
			n = 4
		default:
			return false
		}
		if n <= 0 || n > len(b) {
			return false
		}
		b = b[n:]
	}
	return false
}

// unmarshalProtobuf decodes b and tells whether the optional enum field of
// this number was set to a value that is known, as proto2 sees it.
func unmarshalProtobuf(b []byte, m message, typeField string) (typed bool, err error) {
	if err := m.Unmarshal(b); err != nil {
		return false, err
	}
	v := reflect.ValueOf(m).Elem()
	fields := fieldsOf(v.Type())
	i := slices.IndexFunc(fields, func(f field) bool { return f.name == typeField })
	if i < 0 || !hasField(b, fields[i].number) {
		return false, nil
	}
	_, known := fields[i].enum.names[int32(v.Field(fields[i].index).Int())]
	return known, nil
}

// clone returns a deep copy of m. It goes through the wire format because the
// reflection of gogo/protobuf does not know all of mesos-go's by-value fields.
func clone[T any, P interface {
	*T
	message
}](m P) P {
	b, err := m.Marshal()
	if err != nil {
		panic(fmt.Sprintf("testmesos: encode %T: %v", m, err))
	}
	out := P(new(T))
	if err := out.Unmarshal(b); err != nil {
		panic(fmt.Sprintf("testmesos: decode %T: %v", m, err))
	}
	return out
}
