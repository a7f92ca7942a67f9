// Package openai holds the wire types of OpenAI's HTTP API and the code to read and write them:
// bounded request decoding, the error envelope and server-sent events.
//
// Worker types use it to answer requests, the gateway to check and relay them, and clients to send
// them. It imports the standard library only.
package openai
