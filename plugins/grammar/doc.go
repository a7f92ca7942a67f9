// Package grammar constrains what a language model writes. It compiles a JSON Schema into a machine
// over bytes, and computes from the state of that machine which tokens of a vocabulary may come
// next.
//
// A conjunction of schemas is expanded into alternatives by type, lazily. A document is followed by
// threads: each has a position within a token of JSON, which does not depend on what surrounds it,
// and a stack of the objects and arrays around it. Alternatives that stand at the same position
// share one stack with several tops, so that their number stays small. Strings are followed by the
// derivatives of regular expressions with intersection and complement, and their lengths counted
// apart; numbers are followed by comparing their digits with bounds. All states are interned, and
// masks are kept for each state. Each call has a bound of work, and each grammar one of memory.
package grammar
