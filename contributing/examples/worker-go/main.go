// Command rbee-worker-parrot is a worker type in one file. It says the words of the prompt again
// and again, in capitals, one each 10 ms.
//
// Build it into a running hive, or by hand:
//
//	rbee worker build "$PWD"
//	go build -o rbee-worker-parrot . && rbee plugin test ./rbee-worker-parrot
package main

import (
	"context"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker/simple"
)

// longest is how many words an answer has unless the client sets a limit.
const longest = 150

func parrot() simple.Worker {
	return simple.Worker{
		Info:     sdk.Info{Name: "parrot", Version: "0.1.0", Summary: "Says what it is told."},
		Generate: generate,
	}
}

// generate returns when ctx ends, or when emit reports that no more text is wanted.
func generate(ctx context.Context, prompt string, emit func(token string) error) error {
	words := strings.Fields(strings.ToUpper(prompt))
	for i := range longest {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		if len(words) == 0 {
			return nil
		}
		word := words[i%len(words)]
		if i > 0 {
			word = " " + word
		}
		if err := emit(word); err != nil {
			return err
		}
	}
	return nil
}

func main() { simple.Serve(parrot()) }
