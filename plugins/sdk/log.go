package sdk

import (
	"context"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// Log returns a standard library logger that writes to Logger.
func Log(name string) *slog.Logger { return slog.New(&slogHandler{log: Logger(name)}) }

// slogHandler forwards package slog's records to an hclog logger. Keys inside a group are prefixed
// with the group's name and a dot.
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

// appendPair appends an attribute's key and value, or those of a group's attributes.
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
