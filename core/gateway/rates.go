package gateway

import (
	"net/http"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
)

// tellRates sets the rate limit headers that clients of OpenAI's and Anthropic's APIs read. If
// there are several windows, it reports the one with proportionally the least left.
func tellRates(h http.Header, rates []inference.Rate, now time.Time) {
	for _, of := range []core.LimitOf{core.LimitRequests, core.LimitTokens} {
		var told *inference.Rate
		for i, r := range rates {
			if r.Of == string(of) && (told == nil || float64(r.Remaining)/float64(r.Count) < float64(told.Remaining)/float64(told.Count)) {
				told = &rates[i]
			}
		}
		if told == nil {
			continue
		}
		limit, remaining := strconv.FormatInt(told.Count, 10), strconv.FormatInt(told.Remaining, 10)
		h.Set("X-Ratelimit-Limit-"+string(of), limit)
		h.Set("X-Ratelimit-Remaining-"+string(of), remaining)
		h.Set("X-Ratelimit-Reset-"+string(of), told.Reset.Round(time.Millisecond).String())
		h.Set("Anthropic-Ratelimit-"+string(of)+"-Limit", limit)
		h.Set("Anthropic-Ratelimit-"+string(of)+"-Remaining", remaining)
		h.Set("Anthropic-Ratelimit-"+string(of)+"-Reset", now.Add(told.Reset).UTC().Format(time.RFC3339))
	}
}
