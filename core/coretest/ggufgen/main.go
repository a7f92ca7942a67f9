// Command ggufgen writes a GGUF model file with random weights of a chosen shape: its speed and
// memory use match those of a trained model of that shape, its text is noise. Tests and benchmarks
// use it when the real small model is too fast.
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
