package client

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// ReadOption sets how fresh a read of the registry must be, or where to report how fresh it was.
type ReadOption func(*reading)

type reading struct {
	consistency core.Consistency
	info        *core.ReadInfo
}

// Consistency requests a read at least as fresh as c demands; without it, the queen's default
// applies.
func Consistency(c core.Consistency) ReadOption { return func(r *reading) { r.consistency = c } }

// Report writes the age of the answer to info once the call has returned without an error.
func Report(info *core.ReadInfo) ReadOption { return func(r *reading) { r.info = info } }

func readingOf(opts []ReadOption) reading {
	var r reading
	for _, o := range opts {
		o(&r)
	}
	return r
}

// path adds the requested consistency to the path of a call.
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

// report copies the age from the answer's header. The queen of a single-node agent sends none.
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
