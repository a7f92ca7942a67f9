// Package dialogue interprets a model's text: its thinking, its answer, and its tool calls. Each
// family of models marks them in its own way, which its chat template reveals.
//
// Recognise finds the Format of a chat template, Format.NewParser returns a Parser that turns a
// streamed answer into Deltas, and Format.Constrain returns the constraint that calls must satisfy,
// for constrained decoding. The package is independent of engines and HTTP.
package dialogue
