package origin

import (
	"net/http"
	"net/url"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := f(r)
	if resp != nil {
		resp.Request = r
	}
	return resp, err
}

// NewForTest returns a client that calls f instead of the network.
func NewForTest(o Options, f func(*http.Request) (*http.Response, error)) *Client {
	c, err := New(o)
	if err != nil {
		panic(err)
	}
	c.http.Transport = roundTripper(f)
	return c
}

// Check validates an address before any lookup.
func (c *Client) Check(u *url.URL) error { return c.rt.guard.checkURL(u) }
