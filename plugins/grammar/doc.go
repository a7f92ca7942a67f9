// Package grammar constrains the output of a language model. It compiles a JSON Schema into a
// machine over bytes, and computes from the state of that machine which tokens of a vocabulary may
// come next.
//
// A conjunction of schemas is expanded lazily into alternatives by type. Threads follow a document:
// each has a position within a token of JSON, which does not depend on the enclosing values, and a
// stack of the enclosing objects and arrays. Alternatives at the same position share one stack with
// several tops, which keeps their number small. Strings are followed by derivatives of regular
// expressions with intersection and complement, with their lengths counted separately; numbers by
// comparing their digits with bounds. All states are interned, and masks are cached per state. Each
// call has a bound on work, and each grammar one on memory.
package grammar
