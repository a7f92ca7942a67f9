package client

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// ReadOption says how new a read of the registry must be, or where to tell how new it was.
type ReadOption func(*reading)

type reading struct {
	consistency core.Consistency
	info        *core.ReadInfo
}

// Consistency asks for a read that is as new as c says; without it the queen's default holds.
func Consistency(c core.Consistency) ReadOption { return func(r *reading) { r.consistency = c } }

// Report has the answer's age written to info, once the call has returned without an error.
func Report(info *core.ReadInfo) ReadOption { return func(r *reading) { r.info = info } }

func readingOf(opts []ReadOption) reading {
	var r reading
	for _, o := range opts {
		o(&r)
	}
	return r
}

// path is that of a call with the consistency that is asked for.
func (r reading) path(path string) string {
	if r.consistency == "" {
		return path
	}
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	return path + separator + "consistency=" + url.QueryEscape(string(r.consistency))
}

// report tells what the answer's header says of its age. A queen of an agent alone says nothing.
func (r reading) report(h http.Header) {
	if r.info == nil {
		return
	}
	index, _ := strconv.ParseUint(h.Get("X-Rbee-Index"), 10, 64)
	contact, _ := strconv.ParseInt(h.Get("X-Rbee-Last-Contact"), 10, 64)
	*r.info = core.ReadInfo{
		Index: index, Leader: h.Get("X-Rbee-Leader"), LastContact: core.Duration(time.Duration(contact) * time.Millisecond), Stale: h.Get("X-Rbee-Stale") == "true",
	}
}
