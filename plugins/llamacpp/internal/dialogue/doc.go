// Package dialogue reads what a model means by its text: what it thinks, what it says, and which
// tools it calls. Each family of models has markers of its own for that, which its chat template
// tells.
//
// Recognise finds the Format of a chat template, Format.NewParser a Parser that turns a streamed
// answer into Deltas, and Format.Constraint what a call must look like, for constrained decoding.
// The package knows nothing of engines and HTTP.
package dialogue
