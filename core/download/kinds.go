package download

import (
	"context"
	"errors"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// kinds classifies an error of package sdk, and keeps its hint.
func kinds(err error) error {
	if err == nil {
		return nil
	}
	kind := core.Unavailable
	for _, k := range []struct {
		err  error
		kind core.Kind
	}{
		{context.Canceled, core.Cancelled},
		{context.DeadlineExceeded, core.DeadlineExceeded},
		{sdk.ErrInvalid, core.Invalid},
		{sdk.ErrNotFound, core.NotFound},
		{sdk.ErrTooLarge, core.TooLarge},
		{sdk.ErrIntegrity, core.Integrity},
		{sdk.ErrUnsupported, core.Unsupported},
		{sdk.ErrUnauthenticated, core.Unauthenticated},
		{sdk.ErrForbidden, core.Forbidden},
	} {
		if errors.Is(err, k.err) {
			kind = k.kind
			break
		}
	}
	classified := core.WithKind(err, kind)
	if hint := sdk.HintOf(err); hint != "" {
		return core.WithHint(classified, "%s", hint)
	}
	return classified
}
