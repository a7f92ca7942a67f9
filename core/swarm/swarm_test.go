package swarm_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/swarm"
)

func TestManyHivesOneTransfer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := strings.Fields("a b c d e f g h i j k l")
		s := newRig(t, ids...)
		begin := time.Now()
		for id, err := range s.all(ids...) {
			must.NoError(t, err, must.Sprint(id))
		}
		must.Eq(t, rigSize, s.origin.Load())
		// The hives copy the file while it arrives, not only once it is whole.
		must.Less(t, 13*time.Second, time.Since(begin))

		// A hive that joins later copies it from the others.
		late := s.add("late")
		must.NoError(t, late.download(t.Context()))
		must.Eq(t, rigSize, s.origin.Load())
		must.StrContains(t, strings.Join(late.said, "\n"), "taking it from hive")
	})
}

// at returns the hive that is at the origin.
func (s *rig) at() *bee {
	for _, b := range s.hives {
		if _, origin := b.client.Fetching(s.digest); origin {
			return b
		}
	}
	return nil
}

func TestSeedingHiveDies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b", "c", "d")
		var dead string
		later(5*time.Second, func() {
			b := s.at()
			dead = b.id
			b.kill()
		})
		errs := s.all("a", "b", "c", "d")
		must.NotEq(t, "", dead)
		for id, err := range errs {
			if id == dead {
				must.Error(t, err)
				continue
			}
			must.NoError(t, err, must.Sprint(id))
			must.Eq(t, rigSize, s.hives[id].shelf.have(s.digest))
		}
		must.Less(t, rigSize+rigRate, s.origin.Load()) // refetches only bytes not passed on
	})
}

func TestEveryHiveButOneDies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b", "c", "d")
		for i := range 3 {
			later(time.Duration(3*(i+1))*time.Second, func() {
				if b := s.at(); b != nil {
					b.kill()
				}
			})
		}
		whole := 0
		for _, err := range s.all("a", "b", "c", "d") {
			if err == nil {
				whole++
			}
		}
		must.Eq(t, 1, whole)
		must.Less(t, rigSize+3*rigRate, s.origin.Load())
	})
}

// A cancelled job makes way for another hive.
func TestSeedingJobCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.hives["a"].download(ctx) }()
		time.Sleep(time.Second)
		later(3*time.Second, cancel)
		must.NoError(t, s.hives["b"].download(t.Context()))
		must.ErrorIs(t, <-ended, context.Canceled)
		must.Less(t, rigSize+rigRate, s.origin.Load())
	})
}

func TestNewLeaderAsksHives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b", "c", "late")
		later(3*time.Second, func() {
			s.mu.Lock()
			s.leader = core.Errorf(core.Unavailable, "there is no leader")
			s.mu.Unlock()
		})
		later(5*time.Second, func() {
			s.board.Clear()
			s.mu.Lock()
			s.leader = nil
			s.mu.Unlock()
		})
		done := make(chan error, 1)
		later(6*time.Second, func() { done <- s.hives["late"].download(t.Context()) })
		for id, err := range s.all("a", "b", "c") {
			must.NoError(t, err, must.Sprint(id))
		}
		must.NoError(t, <-done)
		must.Eq(t, rigSize, s.origin.Load())
	})
}

func TestSeedingWithoutLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b")
		s.leader = core.Errorf(core.Unavailable, "there is no leader")
		for id, err := range s.all("a", "b") {
			must.NoError(t, err, must.Sprint(id))
		}
		must.Eq(t, 2*rigSize, s.origin.Load())
	})
}

// A hive that sends wrong bytes does no harm: the file is fetched from its origin, and that hive is
// not asked for it again.
func TestWrongBytesFromHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "bad", "b")
		wrong := bytes.Clone(s.data)
		wrong[len(wrong)/2]++
		s.hives["bad"].shelf.put(wholeMemFile(wrong))
		b := s.hives["b"]
		must.NoError(t, b.download(t.Context()))
		must.Eq(t, rigSize, s.origin.Load())
		must.StrContains(t, strings.Join(b.said, "\n"), "was not right")
		b.said = nil
		must.NoError(t, b.download(t.Context()))
		must.Eq(t, 2*rigSize, s.origin.Load())
		must.StrNotContains(t, strings.Join(b.said, "\n"), "hive bad")
	})
}

// A hive that does not answer, or promises a file and sends nothing, delays no other hive for long.
func TestSilentSeeder(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(s *rig, c net.Conn){
		"from the beginning": func(*rig, net.Conn) {},
		"in the middle": func(s *rig, c net.Conn) {
			_, _ = fmt.Fprintf(c, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-%d/%d\r\nContent-Length: %d\r\n\r\n", rigSize-1, rigSize, rigSize)
			_, _ = c.Write(s.data[:rigSize/2])
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newRig(t, "mute")
				b := s.add("b", func(o *swarm.ClientOptions) {
					o.Dial = func(context.Context, string, string) (net.Conn, error) {
						client, server := net.Pipe()
						go func() {
							_, _ = http.ReadRequest(bufio.NewReader(server))
							answer(s, server)
							_, _ = io.Copy(io.Discard, server) // until the other side closes
						}()
						return client, nil
					}
				})
				_, _, err := s.board.Begin(time.Now(), s.digest)
				must.NoError(t, err)
				// The hive lies.
				s.board.Asked(time.Now(), s.digest, map[string]swarm.Holding{"mute": {Whole: true}})
				begin := time.Now()
				must.NoError(t, b.download(t.Context()))
				must.Less(t, time.Minute, time.Since(begin))
				must.LessEq(t, rigSize, s.origin.Load())
			})
		})
	}
}

// A hive that cannot reach the one at the origin does not wait for it forever, however long that
// one takes.
func TestUnreachableHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a")
		cut := s.add("cut", func(o *swarm.ClientOptions) {
			o.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route to host") }
		})
		s.fetch = func(ctx context.Context, hive string, offset int64, w io.Writer) error {
			for hive == "a" { // forever
				time.Sleep(time.Second)
				if _, err := w.Write([]byte{0}); err != nil || ctx.Err() != nil {
					return ctx.Err()
				}
			}
			return s.slowly(ctx, hive, offset, w)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.hives["a"].download(ctx) }()
		time.Sleep(time.Second)
		begin := time.Now()
		must.NoError(t, cut.download(t.Context()))
		must.Less(t, 30*time.Second, time.Since(begin))
		cancel()
		must.Error(t, <-ended)
	})
}

// If one hive has access to the origin and another has not, both have the file in the end.
func TestOriginFailsOneHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refused := core.Errorf(core.Unauthenticated, "a token is needed")
		s := newRig(t, "a", "b")
		s.fetch = func(ctx context.Context, hive string, offset int64, w io.Writer) error {
			if hive == "a" {
				time.Sleep(time.Second)
				return refused
			}
			return s.slowly(ctx, hive, offset, w)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.hives["a"].download(t.Context()) }()
		time.Sleep(time.Millisecond)
		must.NoError(t, s.hives["b"].download(t.Context()))
		must.NoError(t, <-ended)
		must.Eq(t, rigSize, s.origin.Load())

		// If no hive has access, each gets the origin's error.
		s = newRig(t, "a", "b")
		s.fetch = func(context.Context, string, int64, io.Writer) error { return refused }
		for id, err := range s.all("a", "b") {
			must.ErrorIs(t, err, refused, must.Sprint(id))
		}
	})
}

// A hive that serves no files leaves the origin to others, and takes what it can get.
func TestMuteHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a")
		quiet := s.add("quiet", func(o *swarm.ClientOptions) { o.Mute = true })
		must.NoError(t, quiet.download(t.Context()))
		must.Eq(t, rigSize, s.origin.Load())
		s.hives["quiet"].shelf.put(nil)
		must.NoError(t, s.hives["a"].download(t.Context()))
		must.Eq(t, 2*rigSize, s.origin.Load())
		must.NoError(t, quiet.download(t.Context()))
		must.Eq(t, 2*rigSize, s.origin.Load())
	})
}
