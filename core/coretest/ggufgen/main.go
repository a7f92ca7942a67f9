// Command ggufgen writes a GGUF model file with random weights of a chosen shape: its speed and
// memory use are those of a trained model of that shape, its text is noise. Tests and benchmarks
// use it where the real little model is too fast.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := runSynth(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ggufgen:", err)
		os.Exit(1)
	}
}
