package fsm

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

func roots() []protoreflect.Message {
	return []protoreflect.Message{(&raftv1.Command{}).ProtoReflect(), (&raftv1.SnapshotRecord{}).ProtoReflect()}
}

// An older queen silently drops a field that it does not know. So each field either belongs to
// versions 1 and 2, which testdata/fields.txt lists permanently, or has a row in the table.
func TestTableIsComplete(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/fields.txt")
	must.NoError(t, err)
	known := strings.Fields(string(data))
	for _, f := range features {
		must.Between(t, 2, f.Since, Version, must.Sprint(f.Name))
		for _, name := range f.Fields {
			// a known field may gain a new meaning
			if f.Since > 2 && !slices.Contains(known, name) {
				known = append(known, name)
			}
		}
	}
	var all []string
	for _, m := range roots() {
		all = fieldsOf(m.Descriptor(), all)
	}
	slices.Sort(all)
	slices.Sort(known)
	must.Eq(t, slices.Compact(all), known, must.Sprint("a new field needs a row in the table of raft/fsm/table.go"))
}

func fieldsOf(m protoreflect.MessageDescriptor, list []string) []string {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		list = append(list, string(m.Name())+"."+string(f.Name()))
		if f.Message() != nil {
			list = fieldsOf(f.Message(), list)
		}
	}
	return list
}

// Wherever a field of the table is set, the message needs the field's version, and an older build
// does not see the field.
func TestTableNoticesEachField(t *testing.T) {
	t.Parallel()
	for _, f := range features {
		for _, name := range f.Fields {
			newer := NewTable(9, []Feature{{Name: f.Name, Since: 9, Fields: []string{name}}})
			older := NewTable(8, newer.features)
			found := 0
			for _, root := range roots() {
				eachWith(root, name, func() {
					found++
					must.Eq(t, 9, newer.needs(root, 1), must.Sprint(name, root))
					m := known(older, proto.Clone(root.Interface()))
					must.Eq(t, 1, newer.needs(m.ProtoReflect(), 1), must.Sprint(name, m))
					must.True(t, proto.Equal(root.Interface(), known(newer, root.Interface())))
				})
			}
			must.Positive(t, found, must.Sprint(name))
		}
	}
}

// eachWith calls visit with root while it has the field set, once for each place that can hold the
// field.
func eachWith(root protoreflect.Message, name string, visit func()) {
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		for i := range m.Descriptor().Fields().Len() {
			f := m.Descriptor().Fields().Get(i)
			switch {
			case f.IsList() && f.Message() != nil:
				list := m.Mutable(f).List()
				walk(list.AppendMutable().Message())
			case f.Message() != nil:
				walk(m.Mutable(f).Message())
			case f.IsList():
				m.Mutable(f).List().Append(some(f))
			default:
				m.Set(f, some(f))
			}
			if string(m.Descriptor().Name())+"."+string(f.Name()) == name {
				visit()
			}
			m.Clear(f)
		}
	}
	walk(root)
}

// some returns a value that is not the zero one.
func some(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	}
	panic("add the kind " + f.Kind().String())
}
