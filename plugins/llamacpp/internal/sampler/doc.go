// Package sampler chooses tokens from the logits of a language model: it biases, penalises,
// truncates and draws as llama.cpp's samplers do, in Go and without sorting the vocabulary.
//
// A [Sampler] belongs to one text. [Sampler.Choose] reads one row of logits, [Sampler.Accept]
// appends a token to the text. A [Work] holds the buffers and serves any number of samplers, one
// after the other.
//
// # What is drawn
//
// A row passes these stages: the logit bias, then [Params.Stages] in their order, then the draw.
// Each stage sees what the stages before it left. Two tokens with equal logits are told apart by
// their number, the smaller one first, so that a choice depends on the logits and on nothing else.
//
// A temperature of 0 takes the largest logit after the bias, the penalties and DRY, whatever the
// other parameters are, as clients expect of OpenAI's API. In llama.cpp, XTC and typical sampling
// may remove the likeliest token even then.
//
// # Random numbers
//
// The draw at a position of a text is a function of the seed, of the number of the choice among
// several to one prompt, and of that position, which counts the prompt's tokens. So an answer does
// not depend on the requests beside it, and goes on the same when its text so far is sent as the
// prompt of another request. See [Philox].
//
// # Constraints
//
// A [Constraint] is asked for the chosen token alone, which is cheap. Only when it refuses does
// Choose compute the mask of all allowed tokens. The choice is then made among the allowed ones of
// the tokens that the stages kept; where they kept none, the stages run again over the allowed
// tokens alone. Drawing again from what is allowed, after a free draw was refused, gives the free
// distribution under the condition that the token is allowed: with q the free distribution and Q
// its part that is allowed, a token has q + (1-Q)·q/Q = q/Q. So the result is distributed as if
// the mask were always applied to the candidates of the stages.
package sampler
