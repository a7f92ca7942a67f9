package core

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// LimitOf is what a Limit counts.
type LimitOf string

// What limits count.
const (
	LimitRequests   LimitOf = "requests"
	LimitTokens     LimitOf = "tokens"     // prompt and answer tokens
	LimitConcurrent LimitOf = "concurrent" // concurrent requests; it has no window
)

// MaxLimits bounds the limits of one token, MaxTokenModels its models.
const (
	MaxLimits      = 8
	MaxTokenModels = 64
	maxLimitCount  = 1_000_000_000_000
)

type limitWindow struct {
	name string
	per  time.Duration
}

// limitWindows lists the allowed windows of a limit.
var limitWindows = []limitWindow{ // constant
	{"second", time.Second}, {"minute", time.Minute}, {"hour", time.Hour}, {"day", 24 * time.Hour},
}

// Limit bounds the use of an API token, at all queens together. Its text form, which people and
// programs see, is "100 requests/minute", "1000000 tokens/day" or "4 concurrent".
type Limit struct {
	Of    LimitOf
	Count int64         // 1 or more
	Per   time.Duration // a rolling window; 0 for LimitConcurrent
}

// ParseLimit parses the text of a Limit. Errors: Invalid.
func ParseLimit(text string) (Limit, error) {
	invalid := func() (Limit, error) {
		return Limit{}, Errorf(Invalid, "%q is not a limit", text[:min(len(text), 60)]).Hint(
			`Write it like "100 requests/minute", "1000000 tokens/day" or "4 concurrent"; windows are second, minute, hour and day.`)
	}
	number, what, ok := strings.Cut(strings.TrimSpace(text), " ")
	count, err := strconv.ParseInt(strings.ReplaceAll(number, "_", ""), 10, 64)
	if !ok || err != nil {
		return invalid()
	}
	of, window, windowed := strings.Cut(strings.TrimSpace(what), "/")
	l := Limit{Of: LimitOf(strings.TrimSpace(of)), Count: count}
	if l.Of == "request" || l.Of == "token" {
		l.Of += "s"
	}
	for _, w := range limitWindows {
		if windowed && strings.TrimSpace(window) == w.name {
			l.Per = w.per
		}
	}
	if windowed && l.Per == 0 || l.Check() != nil {
		return invalid()
	}
	return l, nil
}

// Check returns an error if l is not a valid limit. Errors: Invalid.
func (l Limit) Check() error {
	windowed := slices.ContainsFunc(limitWindows, func(w limitWindow) bool { return w.per == l.Per })
	switch {
	case l.Count < 1 || l.Count > maxLimitCount:
		return Errorf(Invalid, "a limit is from 1 to %d, not %d", int64(maxLimitCount), l.Count)
	case l.Of == LimitConcurrent && l.Per == 0:
		return nil
	case (l.Of == LimitRequests || l.Of == LimitTokens) && windowed:
		return nil
	}
	return Errorf(Invalid, "there is no limit of %q for %s", l.Of, l.Per)
}

// CheckLimits returns an error if a token cannot have these limits: too many, or two of the same
// kind. Errors: Invalid.
func CheckLimits(limits []Limit) error {
	if len(limits) > MaxLimits {
		return Errorf(Invalid, "a token has at most %d limits, not %d", MaxLimits, len(limits))
	}
	for i, l := range limits {
		if err := l.Check(); err != nil {
			return err
		}
		for _, other := range limits[:i] {
			if other.Of == l.Of && other.Per == l.Per {
				return Errorf(Invalid, "a token cannot have both %s and %s", other, l).Hint("Leave one of them out.")
			}
		}
	}
	return nil
}

// String returns the text form of a limit, which ParseLimit parses.
func (l Limit) String() string {
	for _, w := range limitWindows {
		if w.per == l.Per {
			return fmt.Sprintf("%d %s/%s", l.Count, l.Of, w.name)
		}
	}
	return fmt.Sprintf("%d %s", l.Count, l.Of)
}

// MarshalText implements encoding.TextMarshaler.
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: those of ParseLimit.
func (l *Limit) UnmarshalText(text []byte) error {
	read, err := ParseLimit(string(text))
	if err == nil {
		*l = read
	}
	return err
}

// Priority determines a token's share of a busy model, relative to other tokens.
type Priority string

// The priorities.
const (
	PriorityLow    Priority = "low"
	PriorityNormal Priority = "" // written "normal"
	PriorityHigh   Priority = "high"
)

// priorityNormal is the text form of PriorityNormal.
const priorityNormal = "normal"

// ParsePriority parses the text form of a priority. Errors: Invalid.
func ParsePriority(text string) (Priority, error) {
	switch text {
	case string(PriorityLow), string(PriorityHigh):
		return Priority(text), nil
	case priorityNormal, "":
		return PriorityNormal, nil
	}
	return "", Errorf(Invalid, "there is no priority %q", text[:min(len(text), 40)]).Hint("It is low, normal or high.")
}

// Priorities returns the text forms of all priorities.
func Priorities() []string {
	return []string{string(PriorityLow), priorityNormal, string(PriorityHigh)}
}

// Weight returns the share of a token with the priority, relative to others.
func (p Priority) Weight() int64 {
	switch p {
	case PriorityLow:
		return 1
	case PriorityHigh:
		return 16
	}
	return 4
}
