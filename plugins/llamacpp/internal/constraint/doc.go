// Package constraint makes the answers of a model follow a grammar: it compiles the grammar that a
// request asks for, keeps it for the next request, and follows an answer token by token. It knows
// nothing of the engine and of HTTP.
package constraint
