// Package openai has the wire types of OpenAI's HTTP API and the means to read and write them:
// bounded request decoding, the error envelope and server-sent events.
//
// It is used by worker types to answer requests, by the gateway to judge and relay them, and by
// clients. It imports the standard library only.
package openai
