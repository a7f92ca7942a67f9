// Package constraint makes the answers of a model follow a grammar: it compiles the grammar that a
// request asks for, caches it for later requests, and follows an answer token by token. It is
// independent of the engine and of HTTP.
package constraint
