// Command rbee-worker-openai is the worker type openai: it runs a server that speaks OpenAI's HTTP
// API, such as llama-server or vLLM, or passes requests on to a running one.
package main

import (
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() { worker.Serve(newBackend(sdk.Logger("openai"))) }
