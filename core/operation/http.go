package operation

import (
	"cmp"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Path returns the path and query of the GET request for r. An empty hive means the hive of the
// queen's own machine. Errors: Unsupported if the operation has no GET route; NotFound for a name
// that nothing can have.
func (s Spec) Path(r core.Request) (string, error) {
	if s.Get == "" {
		return "", core.Errorf(core.Unsupported, "%s is answered as a job only", s.Name)
	}
	query := url.Values{}
	path := s.Get
	for _, f := range s.Fields {
		v, _ := requestField(&r, f.Name)
		if wildcard, ok := s.wildcard(f.Name); ok {
			text := textOf(v)
			if f.Name == "hive" {
				text = cmp.Or(text, core.LocalHive)
			}
			if text == "" || text == "." || text == ".." { // would change the path
				return "", core.Errorf(core.NotFound, "there is no %s %q", f.Name, text)
			}
			path = strings.Replace(path, wildcard, url.PathEscape(text), 1)
		} else if v.IsValid() && !v.IsZero() {
			query.Set(f.Name, textOf(v))
		}
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return path, nil
}

// RequestOf returns the request of a GET whose route is s.Get. It does not check it: see Check.
// Errors: Invalid for a text where a number is required.
func (s Spec) RequestOf(r *http.Request) (core.Request, error) {
	request := core.Request{Operation: s.Name}
	var query url.Values
	for _, f := range s.Fields {
		var text string
		if _, ok := s.wildcard(f.Name); ok {
			text = r.PathValue(f.Name)
		} else {
			if query == nil {
				query = r.URL.Query()
			}
			text = query.Get(f.Name)
		}
		if text == "" {
			continue
		}
		if err := setField(&request, f.Name, text); err != nil {
			return request, err
		}
	}
	return request, nil
}

// wildcard returns the wildcard in Get that stands for a field.
func (s Spec) wildcard(field string) (string, bool) {
	for _, w := range []string{"{" + field + "}", "{" + field + "...}"} {
		if strings.Contains(s.Get, w) {
			return w, true
		}
	}
	return "", false
}

// textOf formats the value of a field for a path or a query.
func textOf(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case string:
		return x
	case bool:
		return strconv.FormatBool(x)
	case core.Duration:
		return time.Duration(x).String()
	case int:
		return strconv.Itoa(x)
	case []string:
		return strings.Join(x, ",")
	}
	return ""
}

// setField parses what textOf formatted.
func setField(r *core.Request, name, text string) error {
	at, ok := requestField(r, name)
	if !ok {
		return core.Errorf(core.Internal, "a request has no field %q", name)
	}
	var err error
	switch x := at.Addr().Interface().(type) {
	case *string:
		*x = text
	case *bool:
		*x, err = strconv.ParseBool(text)
	case *core.Duration:
		err = x.UnmarshalText([]byte(text))
	case *int:
		if *x, err = strconv.Atoi(text); err == nil && *x < 1 {
			err = strconv.ErrRange
		}
	case *[]string:
		*x = strings.Split(text, ",")
	}
	if err != nil {
		return core.Errorf(core.Invalid, "%s cannot be %q", name, clip(text)).Hint("Correct it and send the request again.")
	}
	return nil
}
