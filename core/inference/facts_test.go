package inference

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestReadFacts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		body   string
		model  string
		stream bool
	}{
		{`{"model":"a"}`, "a", false},
		{" \n{ \"stream\" : true , \"model\" : \"a\" } \t", "a", true},
		{`{"mod\u0065l":"\u0061\/b","stream":false}`, "a/b", false},
		{`{"model":"a","stream":null,"x":[1,-0.5e+3,{"model":"b","stream":true},[],{}],"y":"\"\\\n"}`, "a", false},
		{`{"model":"a","x":"\u0af9\u0AF9\u0000\ud83d\ude00"}`, "a", false},
		{`{"model":"a"` + fields(maxFields-1) + `}`, "a", false},
		{`{"model":"a","x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, "a", false},
	} {
		f, err := readFacts([]byte(c.body), "")
		must.NoError(t, err, must.Sprint(c.body))
		must.Eq(t, facts{model: c.model, stream: c.stream}, f)
	}
}

// fields returns n members of an object.
func fields(n int) string {
	var out strings.Builder
	for i := range n {
		out.WriteString(`,"f` + strconv.Itoa(i) + `":1`)
	}
	return out.String()
}

// FAULTS G-12.
func TestReadFactsRefuses(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"empty":               "",
		"space":               " \n",
		"null":                "null",
		"array":               `[{"model":"a"}]`,
		"string":              `"model"`,
		"cut":                 `{"model":"a"`,
		"cut in a string":     `{"model":"a","x":"`,
		"cut in an escape":    `{"model":"a","x":"\`,
		"cut in a unicode":    `{"model":"a","x":"\u00`,
		"two objects":         `{"model":"a"}{"model":"b"}`,
		"something after":     `{"model":"a"} x`,
		"comma at the end":    `{"model":"a",}`,
		"no comma":            `{"model":"a" "x":1}`,
		"no colon":            `{"model" "a"}`,
		"key without quotes":  `{model:"a"}`,
		"single quotes":       `{'model':'a'}`,
		"comment":             `{"model":"a"/*x*/}`,
		"leading zero":        `{"model":"a","x":01}`,
		"NaN":                 `{"model":"a","x":NaN}`,
		"plus":                `{"model":"a","x":+1}`,
		"bare point":          `{"model":"a","x":1.}`,
		"bad escape":          `{"model":"a","x":"\x"}`,
		"line break in text":  "{\"model\":\"a\",\"x\":\"\n\"}",
		"NUL":                 "{\"model\":\"a\"}\x00",
		"NUL in text":         "{\"model\":\"a\",\"x\":\"\x00\"}",
		"NUL in the model":    `{"model":"a\u0000"}`,
		"invalid UTF-8":       "{\"model\":\"a\xff\"}",
		"invalid UTF-8 after": "{\"model\":\"a\",\"x\":\"\xc3\x28\"}",
		"byte order mark":     "\ufeff{\"model\":\"a\"}",
		"depth":               `{"model":"a","x":` + strings.Repeat("[", 100000),
		"depth of objects":    `{"model":"a","x":` + strings.Repeat(`{"a":`, 100000),
		"model twice":         `{"model":"a","model":"a"}`,
		"model twice, escape": `{"model":"a","mod\u0065l":"b"}`,
		"stream twice":        `{"model":"a","stream":true,"stream":false}`,
		"other field twice":   `{"model":"a","messages":[],"messages":[]}`,
		"model by case":       `{"model":"a","Model":"b"}`,
		"stream by case":      `{"model":"a","STREAM":true}`,
		"stream by folding":   "{\"model\":\"a\",\"\u017ftream\":true}",
		"no model":            `{"stream":true}`,
		"model empty":         `{"model":""}`,
		"model null":          `{"model":null}`,
		"model number":        `{"model":1}`,
		"model long":          `{"model":"` + strings.Repeat("m", 1<<20) + `"}`,
		"model line break":    `{"model":"a\nb"}`,
		"stream string":       `{"model":"a","stream":"true"}`,
		"stream number":       `{"model":"a","stream":1}`,
		"many fields":         `{"model":"a"` + fields(maxFields) + `}`,
		"many, no stream":     `{"model":"a"` + fields(maxFields) + `,"stream":1}`,
		"inner key no string": `{"model":"a","x":{:1}}`,
		"inner key number":    `{"model":"a","x":{1:1}}`,
		"inner no colon":      `{"model":"a","x":{"b" 1}}`,
		"hex, below a":        "{\"model\":\"a\",\"x\":\"\\u000`\"}",
		"hex, above f":        `{"model":"a","x":"\u000g"}`,
		"hex, below A":        `{"model":"a","x":"\u000@"}`,
		"hex, above F":        `{"model":"a","x":"\u000G"}`,
		"hex, below 0":        `{"model":"a","x":"\u000/"}`,
		"hex, above 9":        `{"model":"a","x":"\u000:"}`,
	} {
		_, err := readFacts([]byte(body), "")
		must.Error(t, err, must.Sprint(name))
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(name))
		must.Less(t, 300, len(err.Error()))
		_, ok := errors.AsType[*FieldError](err)
		must.True(t, ok, must.Sprint(name))
		must.Eq(t, strings.HasPrefix(name, "many"), strings.Contains(err.Error(), "more than 256 fields"))
	}
}

func TestReadFactsAllocatesLittle(t *testing.T) { // not parallel: it counts allocations of the whole process
	body := []byte(`{"model":"a","x":"` + strings.Repeat("abcdefgh", 1<<17) + `","y":` + strings.Repeat(`{"a":[1,2,`, 50) + "1" + strings.Repeat("]}", 50) + "}")
	r := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := readFacts(body, ""); err != nil {
				b.Fatal(err)
			}
		}
	})
	must.Less(t, int64(4<<10), r.AllocedBytesPerOp())
}

func FuzzReadFacts(f *testing.F) {
	for _, s := range []string{`{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`, `{"model":"tiny","stream":true}`, `{"model":"a","x":[1,{"y":null}]}`, `{"mod\u0065l":"a"}`, `{"a":1e5,"b":-0,"c":"\ud800"}`, "{\"model\":\"\xff\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := readFacts(body, "")
		if err != nil {
			if core.KindOf(err) != core.Invalid {
				t.Fatalf("kind %q of %v", core.KindOf(err), err)
			}
			return
		}
		// Decoders of workers must understand an accepted body the same way.
		if !json.Valid(body) || !utf8.Valid(body) {
			t.Fatal("took what is not JSON")
		}
		var want struct {
			Model  string `json:"model"`
			Stream bool   `json:"stream"`
		}
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("took what a worker cannot read: %v", err)
		}
		if want.Model != got.model || want.Stream != got.stream {
			t.Fatalf("read %+v, a worker reads %+v", got, want)
		}
	})
}
