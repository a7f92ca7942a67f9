package sdk

import (
	"context"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// Log returns Logger's messages as those of a logger of the standard library.
func Log(name string) *slog.Logger { return slog.New(&slogHandler{log: Logger(name)}) }

// slogHandler writes what package slog is given to a logger of hclog. A group's name and a dot go
// before the keys in it.
type slogHandler struct {
	log    hclog.Logger
	prefix string
}

func hclogLevel(l slog.Level) hclog.Level {
	switch {
	case l < slog.LevelDebug:
		return hclog.Trace
	case l < slog.LevelInfo:
		return hclog.Debug
	case l < slog.LevelWarn:
		return hclog.Info
	case l < slog.LevelError:
		return hclog.Warn
	}
	return hclog.Error
}

func (h *slogHandler) Enabled(_ context.Context, l slog.Level) bool {
	return h.log.GetLevel() <= hclogLevel(l)
}

func (h *slogHandler) Handle(_ context.Context, r slog.Record) error {
	var pairs []any
	r.Attrs(func(a slog.Attr) bool {
		pairs = appendPair(pairs, h.prefix, a)
		return true
	})
	h.log.Log(hclogLevel(r.Level), r.Message, pairs...)
	return nil
}

func (h *slogHandler) WithAttrs(list []slog.Attr) slog.Handler {
	var pairs []any
	for _, a := range list {
		pairs = appendPair(pairs, h.prefix, a)
	}
	return &slogHandler{log: h.log.With(pairs...), prefix: h.prefix}
}

func (h *slogHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &slogHandler{log: h.log, prefix: h.prefix + name + "."}
}

// appendPair adds key and value of an attribute, or those of a group.
func appendPair(pairs []any, prefix string, a slog.Attr) []any {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		if a.Key == "" {
			return pairs
		}
		return append(pairs, prefix+a.Key, v.Any())
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, member := range v.Group() {
		pairs = appendPair(pairs, prefix, member)
	}
	return pairs
}
