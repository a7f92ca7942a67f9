// Command rbee-worker-cuda is the worker type cuda: llama.cpp on NVIDIA graphics cards.
package main

import (
	"github.com/rbee-project/rbee/plugins/llamacpp"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() { worker.Serve(llamacpp.New(llamacpp.CUDA, llamacpp.WithVersion(version))) }
