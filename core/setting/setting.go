// Package setting lists the settings of the cluster, which all queens share and an administrator
// changes while they run. Each is one row here. The command that sets it, its place in the registry
// and in snapshots, its check, the operations setting_list and setting_set, their commands and the
// documentation follow from the row. The registry keeps values as text, so that a queen that is not
// upgraded yet keeps what a newer one knows.
//
// To add a setting, see contributing/add-a-setting.md.
package setting

import (
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// TokenGrace overrides queen.token_grace of every queen.
var TokenGrace = duration(Spec{ // constant
	Name: "token_grace", Doc: "how long a queen without a leader accepts tokens that it has verified before; unset: queen.token_grace of each queen",
}, 0, core.MaxTokenGrace)

// KeepAlive is how long workers that were started for a request stay without requests.
var KeepAlive = keeping(Spec{ // constant
	Name: "keep_alive", Default: "5m", Doc: "how long a worker that was started for a request stays after its last one, unless a request says otherwise",
})

// SwapWait and SwapWarm control how models that cannot be loaded together take turns.
var ( // constant
	SwapWait = duration(Spec{
		Name: "swap_wait", Default: "10s", Doc: "how long a model that a request needs waits for workers with requests to make room, before those take no new requests",
	}, 0, time.Hour)
	SwapWarm = duration(Spec{
		Name: "swap_warm", Default: "5s", Doc: "how long a worker serves at least before it makes room for another model",
	}, 0, time.Hour)
)

var all = []Spec{KeepAlive.Spec, SwapWait.Spec, SwapWarm.Spec, TokenGrace.Spec} // constant; sorted by name

// Spec describes a setting.
type Spec struct {
	Name    string
	Doc     string // a phrase that describes it, with its unit
	Default string // as text; if empty, Doc describes the unset case
	Values  string // allowed values, for people

	check func(text string) error
}

// Of is a setting whose values are Ts.
type Of[T any] struct {
	Spec
	parse func(text string) (T, error)
}

// Value returns the value for the registry's text, or the default if it is unset. A text that this
// version does not accept, since another version may have written it, counts as unset. isSet
// reports whether the value is the registry's.
func (o Of[T]) Value(text string, set bool) (v T, isSet bool) {
	if set {
		if v, err := o.parse(text); err == nil {
			return v, true
		}
	}
	if o.Default != "" {
		v, _ = o.parse(o.Default) // a test parses it
	}
	return v, false
}

// Check returns an error if a text is not a value of the setting. Errors: Invalid.
func (s Spec) Check(text string) error { return s.check(text) }

// All lists the settings, sorted by name.
func All() []Spec { return slices.Clone(all) }

// Find returns the setting with the name. Errors: NotFound, with the most similar names.
func Find(name string) (Spec, error) {
	var names []string
	for _, s := range all {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Spec{}, core.Errorf(core.NotFound, "the cluster has no setting %q", name).Hint(
		"%sThe settings are %s.", core.NearestHint(name, names), strings.Join(names, ", "))
}

func of[T any](s Spec, parse func(text string) (T, error)) Of[T] {
	s.check = func(text string) error {
		if _, err := parse(text); err != nil {
			return core.Errorf(core.Invalid, "%s cannot be %q", s.Name, text).Hint("Give it %s.", s.Values)
		}
		return nil
	}
	return Of[T]{s, parse}
}

// duration returns a setting whose values are times from atLeast to atMost.
func duration(s Spec, atLeast, atMost time.Duration) Of[time.Duration] {
	s.Values = "a duration from " + atLeast.String() + " to " + atMost.String() + `, such as "30m"`
	return of(s, func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err == nil && (d < atLeast || d > atMost) {
			err = core.Errorf(core.Invalid, "out of range")
		}
		return d, err
	})
}

// keeping returns a setting whose values are keep-alive times of workers.
func keeping(s Spec) Of[time.Duration] {
	s.Values = `a duration such as "30m", 0 to unload at once, or -1 for good`
	return of(s, core.ParseKeepAlive)
}
