// Command rbee-worker-cpu is the worker type cpu: llama.cpp on the CPU.
package main

import (
	"github.com/rbee-project/rbee/plugins/llamacpp"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() { worker.Serve(llamacpp.New(llamacpp.CPU, llamacpp.WithVersion(version))) }
