// Command rbee-worker-vulkan is the worker type vulkan: llama.cpp on GPUs with a Vulkan driver.
package main

import (
	"github.com/rbee-project/rbee/plugins/llamacpp"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() { worker.Serve(llamacpp.New(llamacpp.Vulkan, llamacpp.WithVersion(version))) }
