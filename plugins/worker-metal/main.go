// Command rbee-worker-metal is the worker type metal: llama.cpp on the GPU of Apple silicon.
package main

import (
	"github.com/rbee-project/rbee/plugins/llamacpp"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() { worker.Serve(llamacpp.New(llamacpp.Metal, llamacpp.WithVersion(version))) }
