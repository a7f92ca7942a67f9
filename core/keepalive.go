package core

import (
	"encoding/json"
	"math"
	"strconv"
	"time"
)

const (
	// KeepAliveDefault is the text that stands for the cluster's setting keep_alive.
	KeepAliveDefault = "default"
	// KeepForever is the keep-alive time of a worker that does not unload by itself.
	KeepForever time.Duration = -1
	// DefaultKeepAlive is the default of the cluster's setting.
	DefaultKeepAlive = 5 * time.Minute
	// DefaultSwapWait is the default of the cluster's setting swap_wait.
	DefaultSwapWait = 10 * time.Second
	// DefaultSwapWarm is the default of the cluster's setting swap_warm.
	DefaultSwapWarm = 5 * time.Second
	// MaxKeepAlive is the longest time that a worker stays without requests; anything longer means
	// permanently.
	MaxKeepAlive = 365 * 24 * time.Hour
)

// ParseKeepAlive parses how long a worker stays after its last request: a duration ("5m") or a
// number of seconds; a negative one means permanently. Errors: Invalid.
func ParseKeepAlive(text string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(seconds) && !math.IsInf(seconds, 0) {
		return keepFor(seconds), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, Errorf(Invalid, "%.40q is no time to keep a model", text).Hint(
			`Give a duration such as "5m", a number of seconds, 0 to unload it when it is done, or a negative one to keep it.`)
	}
	return keepFor(d.Seconds()), nil
}

// ReadKeepAlive parses the JSON value of a request's keep_alive; set is false if it is absent or
// null. Errors: Invalid.
func ReadKeepAlive(value []byte) (d time.Duration, set bool, err error) {
	text := string(value)
	switch {
	case text == "" || text == "null":
		return 0, false, nil
	case text[0] == '"':
		if err := json.Unmarshal(value, &text); err != nil {
			return 0, false, Errorf(Invalid, "keep_alive is not a valid string")
		}
	case text[0] != '-' && (text[0] < '0' || text[0] > '9'):
		return 0, false, Errorf(Invalid, "keep_alive must be a number of seconds or a duration").Hint(`Give it such as 300 or "5m".`)
	}
	d, err = ParseKeepAlive(text)
	return d, err == nil, err
}

func keepFor(seconds float64) time.Duration {
	if seconds < 0 || seconds > MaxKeepAlive.Seconds() {
		return KeepForever
	}
	return time.Duration(seconds * float64(time.Second))
}
