package wire

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/rbee-project/rbee/core"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// fill sets every field of v, and of everything in it, to a distinct value.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000+int64(*n), 5).UTC()))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d", *n))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Float64:
		v.SetFloat(float64(*n) + 0.5)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Struct:
		for _, f := range v.Fields() {
			fill(t, f, n)
		}
	default:
		t.Fatalf("fill does not know %s", v.Type())
	}
}

// clearPath zeroes the fields named by dotted paths; a path goes through lists.
func clearPath(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	name, rest, more := strings.Cut(path, ".")
	f := v.FieldByName(name)
	must.True(t, f.IsValid(), must.Sprintf("no field %s", path))
	switch {
	case !more && f.Kind() == reflect.Slice:
		f.Set(reflect.MakeSlice(f.Type(), 0, 0))
	case !more:
		f.SetZero()
	case f.Kind() == reflect.Slice:
		for i := range f.Len() {
			clearPath(t, f.Index(i), rest)
		}
	default:
		clearPath(t, f, rest)
	}
}

// fillMessage sets every field of m and of the messages in it.
func fillMessage(t *testing.T, m protoreflect.Message, n *int) {
	t.Helper()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsList() && f.Message() != nil:
			l := m.Mutable(f).List()
			for range 2 {
				fillMessage(t, l.AppendMutable().Message(), n)
			}
		case f.IsList():
			l := m.Mutable(f).List()
			l.Append(scalar(t, f, n))
			l.Append(scalar(t, f, n))
		case f.Message() != nil:
			fillMessage(t, m.Mutable(f).Message(), n)
		default:
			m.Set(f, scalar(t, f, n))
		}
	}
}

func scalar(t *testing.T, f protoreflect.FieldDescriptor, n *int) protoreflect.Value {
	t.Helper()
	*n++
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprintf("p%d", *n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(fmt.Appendf(nil, "b%d", *n))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(*n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(*n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(*n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(*n) + 0.25)
	default:
		t.Fatalf("scalar does not know %s", f.Kind())
		return protoreflect.Value{}
	}
}

// roundTrip checks both directions: the noun loses no field except those in lost, and the message
// none at all.
func roundTrip[N any, M proto.Message](name string, to func(N) M, from func(M) N, lost ...string) (string, func(*testing.T)) {
	return name, func(t *testing.T) {
		t.Parallel()
		var want N
		n := 0
		fill(t, reflect.ValueOf(&want).Elem(), &n)
		m := to(want)
		wireBytes, err := proto.Marshal(m)
		must.NoError(t, err)
		back := m.ProtoReflect().New().Interface().(M)
		must.NoError(t, proto.Unmarshal(wireBytes, back))
		got := from(back)
		for _, path := range lost {
			clearPath(t, reflect.ValueOf(&want).Elem(), path)
		}
		must.Eq(t, want, got)

		full := m.ProtoReflect().New().Interface().(M)
		n = 1000
		fillMessage(t, full.ProtoReflect(), &n)
		again := to(from(full))
		must.True(t, proto.Equal(full, again), must.Sprintf("message changed:\n%v\n%v", full, again))

		// A zero noun is an empty message, and converts back to itself except for lists.
		var zero N
		empty := to(zero)
		must.Eq(t, 0, proto.Size(empty))
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0).UTC()
	workerFromProto := func(m *queenv1.Worker) core.Worker { return WorkerFromProto(m, "", time.Time{}) }
	loadFromProto := func(m *queenv1.Load) core.Load { return LoadFromProto(m, time.Time{}) }

	t.Run(roundTrip("device", DeviceToProto, DeviceFromProto))
	t.Run(roundTrip("failure", FailureToProto, FailureFromProto))
	t.Run(roundTrip("progress", ProgressToProto, ProgressFromProto))
	t.Run(roundTrip("job", JobToProto, JobFromProto))
	t.Run(roundTrip("event", EventToProto, EventFromProto))
	t.Run(roundTrip("hive", HiveToProto, HiveFromProto, "Status", "Draining", "LastBeat", "CreateIndex", "ModifyIndex"))
	t.Run(roundTrip("load", LoadToProto, loadFromProto, "At"))

	// A worker's message always holds a load, so its zero noun is not an empty message.
	t.Run("worker", func(t *testing.T) {
		t.Parallel()
		var want core.Worker
		n := 0
		fill(t, reflect.ValueOf(&want).Elem(), &n)
		got := WorkerFromProto(WorkerToProto(want), "h1", at)
		want.Hive, want.Load.At, want.CreateIndex, want.ModifyIndex = "h1", at, 0, 0
		must.Eq(t, want, got)

		full := &queenv1.Worker{}
		fillMessage(t, full.ProtoReflect(), &n)
		must.True(t, proto.Equal(full, WorkerToProto(workerFromProto(full))))
	})
}

// Lists that the public API writes as [] are never null, even if a peer sent nothing.
func TestListsAreNeverNull(t *testing.T) {
	t.Parallel()
	for name, v := range map[string]any{
		"hive":       HiveFromProto(&queenv1.Hive{}),
		"job":        JobFromProto(&jobv1.Job{}),
		"event":      EventFromProto(nil),
		"no devices": All(nil, DeviceFromProto),
	} {
		text, err := json.Marshal(v)
		must.NoError(t, err, must.Sprint(name))
		must.StrNotContains(t, string(text), "null", must.Sprint(name))
	}
}

func TestEdges(t *testing.T) {
	t.Parallel()
	must.Nil(t, FailureToProto(nil))
	must.Nil(t, FailureFromProto(nil))
	must.Nil(t, ProgressToProto(nil))
	must.Nil(t, ProgressFromProto(nil))
	must.Eq(t, math.MaxInt32, WorkerToProto(core.Worker{Slots: math.MaxInt}).GetSlots())
	must.Eq(t, math.MinInt32, WorkerToProto(core.Worker{Slots: math.MinInt}).GetSlots())
	impossible := &jobv1.Job{CreatedAt: timeToProto(time.Unix(1, 0))}
	impossible.CreatedAt.Nanos = -5
	must.True(t, JobFromProto(impossible).CreatedAt.IsZero())
}

// A noun must not change when its message is reused.
func TestNothingShared(t *testing.T) {
	t.Parallel()
	m := &jobv1.Job{ResultJson: []byte(`{"a":1}`)}
	j := JobFromProto(m)
	m.ResultJson[2] = 'b'
	must.Eq(t, `{"a":1}`, string(j.Result))

	h := &queenv1.Hive{WorkerTypes: []string{"cpu"}}
	got := HiveFromProto(h)
	h.WorkerTypes[0] = "cuda"
	must.Eq(t, []string{"cpu"}, got.WorkerTypes)
}
