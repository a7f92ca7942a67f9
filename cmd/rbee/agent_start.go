package main

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
)

// startAgent runs an agent until ctx ends.
func startAgent(context.Context, *config.Config, hclog.Logger, func(address string)) error {
	return core.Errorf("agent", core.Unsupported, "this build has no agent")
}
