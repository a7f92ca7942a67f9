package gateway

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/net/http2/hpack"

	"github.com/rbee-project/rbee/core/coretest/hostile"
)

// Floods of HTTP/2 frames at the public port take little memory and few goroutines, and other
// clients are served meanwhile. Not parallel: it measures the process.
func TestHostileFrames(t *testing.T) {
	r := newRig(t, nil)
	r.serve("w1", streamOf(tokenEvent(1), doneEvent))
	addr, _, _ := tlsRig(t, r)
	headers := []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "https"},
		{Name: ":path", Value: "/v1/chat/completions"},
		{Name: ":authority", Value: "localhost"},
		{Name: "content-type", Value: "application/json"},
	}
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}} //nolint:gosec // it is the server that is tested
	t.Cleanup(transport.CloseIdleConnections)
	c := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	honest := func() error {
		resp, err := c.Get("https://" + addr + "/healthz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	}
	for _, attack := range hostile.Attacks() {
		t.Run(attack.Name, func(t *testing.T) {
			hostile.Watch(t, 24<<20, 150, honest, func() {
				conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}) //nolint:gosec // it is the server that is tested
				must.NoError(t, err)
				attack.Run(conn, headers...)
			})
		})
	}
}
