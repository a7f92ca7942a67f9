package pluginhost

import (
	"context"
	"errors"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// coreError classifies a plugin's error by what it wraps, and keeps its hint.
func coreError(op string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*core.Error](err); ok {
		return err // the caller's own, from emit or a writer
	}
	kind := core.Internal
	for _, k := range []struct {
		err  error
		kind core.Kind
	}{
		{sdk.ErrInvalid, core.Invalid},
		{sdk.ErrNotFound, core.NotFound},
		{sdk.ErrState, core.Conflict},
		{sdk.ErrUnavailable, core.Unavailable},
		{sdk.ErrTooLarge, core.TooLarge},
		{sdk.ErrIntegrity, core.Integrity},
		{sdk.ErrUnsupported, core.Unsupported},
		{sdk.ErrUnauthenticated, core.Unauthenticated},
		{sdk.ErrForbidden, core.Forbidden},
		{context.Canceled, core.Cancelled},
		{context.DeadlineExceeded, core.DeadlineExceeded},
	} {
		if errors.Is(err, k.err) {
			kind = k.kind
			break
		}
	}
	classified := core.Wrap(err, kind, op)
	if hint := sdk.HintOf(err); hint != "" {
		return core.WithHint(classified, "%s", hint)
	}
	return classified
}
