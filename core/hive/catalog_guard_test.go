package hive

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

func good() catalog.Manifest {
	return catalog.Manifest{Ref: "x", Name: "x", Files: []catalog.File{{Path: "x.gguf"}}}
}

func TestHungCatalogEndedAlone(t *testing.T) {
	t.Parallel()
	offers := map[string]*shop{"hangs": {deaf: true, wait: time.Hour}, "slow": {wait: time.Minute, manifest: good()}}
	selling(t, offers, []string{"hangs", "slow"}, func(t *testing.T, c *catalogs, s *shops) {
		var wg sync.WaitGroup
		wg.Go(func() {
			// A slow plugin answers pings, and is waited for.
			_, err := c.resolve(t.Context(), "slow:x")
			must.NoError(t, err)
		})
		start := time.Now()
		_, err := c.resolve(t.Context(), "hangs:x")
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.ErrorContains(t, err, "does not answer")
		must.NotEq(t, "", core.HintOf(err))
		must.LessEq(t, 10*time.Second, time.Since(start))
		must.True(t, isDone(s.launched["hangs"][0].done))
		wg.Wait()
		must.False(t, isDone(s.launched["slow"][0].done))
	})
}

func TestResolveTimeout(t *testing.T) {
	t.Parallel()
	selling(t, map[string]*shop{"slow": {wait: time.Hour}}, []string{"slow"}, func(t *testing.T, c *catalogs, s *shops) {
		start := time.Now()
		_, err := c.resolve(t.Context(), "slow:x")
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.ErrorContains(t, err, "no answer within")
		must.LessEq(t, resolveTimeout+time.Second, time.Since(start))
		must.False(t, isDone(s.launched["slow"][0].done)) // it may be fetching a file for another job
	})
}

func TestCrashingCatalogBacksOff(t *testing.T) {
	t.Parallel()
	selling(t, map[string]*shop{"bad": {err: core.Errorf(core.WorkerLost, "it ended")}, "good": {manifest: good()}}, []string{"bad", "good"}, func(t *testing.T, c *catalogs, s *shops) {
		crash := func() error {
			_, err := c.resolve(t.Context(), "bad:x")
			must.Error(t, err)
			if core.KindOf(err) == core.WorkerLost {
				must.NoError(t, s.launched["bad"][len(s.launched["bad"])-1].Close())
			}
			return err
		}
		// Each crash costs a launch; from the second in a row on, a backoff precedes the next,
		// which doubles each time.
		launches := func() int { return len(s.launched["bad"]) }
		crash()
		crash()
		must.Eq(t, 2, launches())
		for want := time.Second; want <= longestRest; want *= 2 {
			before := launches()
			err := crash()
			must.Eq(t, core.Unavailable, core.KindOf(err))
			must.StrContains(t, core.HintOf(err), "again in "+want.String())
			must.Eq(t, before, launches())
			time.Sleep(want)
			crash()
			must.Eq(t, before+1, launches())
		}
		_, err := c.resolve(t.Context(), "good:x")
		must.NoError(t, err)
		// A success resets the backoff.
		must.Eq(t, core.Unavailable, core.KindOf(crash()))
		time.Sleep(longestRest)
		s.offers["bad"] = &shop{manifest: good()}
		_, err = c.resolve(t.Context(), "bad:x")
		must.NoError(t, err)
		must.NoError(t, s.launched["bad"][launches()-1].Close())
		_, err = c.resolve(t.Context(), "bad:x")
		must.NoError(t, err)
	})
}

func TestCatalogOutputBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxTextBytes+1)
	for name, spoil := range map[string]func(*catalog.Manifest){
		"no file":       func(m *catalog.Manifest) { m.Files = nil },
		"many files":    func(m *catalog.Manifest) { m.Files = make([]catalog.File, maxFiles+1) },
		"many notes":    func(m *catalog.Manifest) { m.Notes = make([]string, maxNotes+1) },
		"long note":     func(m *catalog.Manifest) { m.Notes = []string{long} },
		"long name":     func(m *catalog.Manifest) { m.Name = long },
		"long locator":  func(m *catalog.Manifest) { m.Files[0].Locator = long },
		"long url":      func(m *catalog.Manifest) { m.Files[0].URL = long },
		"long header":   func(m *catalog.Manifest) { m.Files[0].Header = map[string]string{"A": long} },
		"negative size": func(m *catalog.Manifest) { m.Files[0].SizeBytes = -1 },
		"many headers": func(m *catalog.Manifest) {
			m.Files[0].Header = map[string]string{}
			for i := range maxNotes + 1 {
				m.Files[0].Header[fmt.Sprint(i)] = ""
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := good()
			spoil(&m)
			selling(t, map[string]*shop{"a": {manifest: m}}, []string{"a"}, func(t *testing.T, c *catalogs, _ *shops) {
				got, err := c.resolve(t.Context(), "a:x")
				must.Eq(t, core.Internal, core.KindOf(err))
				must.StrContains(t, core.HintOf(err), "author")
				must.Less(t, 1000, len(err.Error()))
				must.SliceEmpty(t, got.Files)
			})
		})
	}
	items := make([]catalog.Item, maxItems+500)
	items[3].Summary = long
	selling(t, map[string]*shop{"a": {items: items}}, []string{"a"}, func(t *testing.T, c *catalogs, _ *shops) {
		found, err := c.search(t.Context(), catalog.Query{}, "")
		must.NoError(t, err)
		must.Len(t, maxItems, found)
	})
}

func TestStalledTransferAborted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// The time that the writer takes does not count, however long.
		var b bytes.Buffer
		must.NoError(t, copying(t.Context(), &slowWriter{w: &b, takes: time.Hour}, func(ctx context.Context, w io.Writer) error {
			for range 3 {
				time.Sleep(fetchStall - time.Second)
				if _, err := io.WriteString(w, "x"); err != nil {
					return err
				}
			}
			return ctx.Err()
		}))
		must.Eq(t, "xxx", b.String())
		start := time.Now()
		err := copying(t.Context(), &b, func(ctx context.Context, _ io.Writer) error {
			<-ctx.Done()
			return ctx.Err()
		})
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.Eq(t, fetchStall, time.Since(start))
	})
}

type slowWriter struct {
	w     io.Writer
	takes time.Duration
}

func (s *slowWriter) Write(b []byte) (int, error) {
	time.Sleep(s.takes)
	return s.w.Write(b)
}
