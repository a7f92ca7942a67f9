package gateway

import (
	"context"
	"crypto/hmac"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// LocalTokens creates tokens for users of a queen's own machine. Anyone who can read its data
// folder has the keys of the cluster, so that a token gives them no further power, and a cluster
// can recover from the loss of its last operator token. Each request proves this read access:
// plugins, which run as the same user and can reach the socket, must not get tokens.
type LocalTokens struct {
	Create func(ctx context.Context, r core.TokenRequest) (core.NewToken, error)
	Proof  func(message []byte) []byte                // pki.Identity.Proof
	Told   func(ctx context.Context, made core.Token) // called with each token; must not block
}

// ProofHeader is the header that carries a LocalProof.
const ProofHeader = "X-Rbee-Proof"

// proofLife bounds the age of a proof; each proof is valid once.
const proofLife = time.Minute

// LocalProof returns a proof for a request with the given body, made at now.
func LocalProof(body []byte, now time.Time, proof func(message []byte) []byte) string {
	at := strconv.FormatInt(now.UnixNano(), 10)
	return at + "." + fmt.Sprintf("%x", proof([]byte(at+"\n"+string(body))))
}

// usedProofs remembers proofs for twice proofLife, so that each is accepted once.
type usedProofs struct {
	mu   sync.Mutex // guards below
	seen map[string]time.Time
}

// check returns an error for an invalid proof. Errors: Forbidden.
func (u *usedProofs) check(text string, body []byte, now time.Time, proof func([]byte) []byte) error {
	at, _, _ := strings.Cut(text, ".")
	nanos, err := strconv.ParseInt(at, 10, 64)
	age := now.Sub(time.Unix(0, nanos)).Abs()
	if err != nil || age > proofLife || !hmac.Equal([]byte(text), []byte(LocalProof(body, time.Unix(0, nanos), proof))) {
		return core.Errorf(core.Forbidden, "no valid proof of read access to this queen's data folder").Hint("Run the command as the user of the agent, or as root.")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.seen, func(_ string, t time.Time) bool { return now.Sub(t) > 2*proofLife })
	if _, used := u.seen[text]; used {
		return core.Errorf(core.Forbidden, "the proof was already used")
	}
	u.seen[text] = now
	return nil
}

// LocalHandler serves what a hive knows about itself, read-only, in the form of the public API with
// core.LocalHive as the hive, the state of the machine's membership, and, on a queen, the creation
// of tokens. Each of h, tokens and standing may be nil. It is for a socket that only the agent's
// user can open: it requires no token.
func LocalHandler(h operation.Answerer, tokens *LocalTokens, standing func() core.Standing) http.Handler {
	mux := http.NewServeMux()
	if standing != nil {
		mux.HandleFunc("GET /v1/standing", func(w http.ResponseWriter, _ *http.Request) {
			if err := writeJSON(w, http.StatusOK, standing()); err != nil {
				fail(w, err)
			}
		})
	}
	if tokens != nil {
		used := &usedProofs{seen: map[string]time.Time{}}
		mux.HandleFunc("POST /v1/tokens", func(w http.ResponseWriter, r *http.Request) {
			made, err := localToken(tokens, used, w, r)
			if err == nil {
				w.Header().Set("Cache-Control", "no-store")
				err = writeJSON(w, http.StatusCreated, made)
			}
			if err != nil {
				fail(w, err)
			}
		})
	}
	if h != nil {
		localHive(mux, h)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fail(w, noRoute(r)) })
	return mux
}

func localToken(tokens *LocalTokens, used *usedProofs, w http.ResponseWriter, r *http.Request) (core.NewToken, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAdminBody))
	if err != nil {
		return core.NewToken{}, core.Errorf(core.Invalid, "the request cannot be read: %w", err)
	}
	if err := used.check(r.Header.Get(ProofHeader), body, time.Now(), tokens.Proof); err != nil {
		return core.NewToken{}, err
	}
	var request core.TokenRequest
	if err := decodeObject(body, &request, "a token"); err != nil {
		return core.NewToken{}, err
	}
	made, err := tokens.Create(r.Context(), request)
	if err == nil {
		tokens.Told(r.Context(), made.Token)
	}
	return made, err
}

// localHive serves the operations that a hive answers.
func localHive(mux *http.ServeMux, h operation.Answerer) {
	for _, s := range operation.All() {
		rest, ok := strings.CutPrefix(s.Get, "/v1/hives/{hive}")
		if !s.AsksHive || !ok {
			continue
		}
		mux.HandleFunc("GET /v1/hives/"+core.LocalHive+rest, func(w http.ResponseWriter, r *http.Request) {
			request, err := s.RequestOf(r)
			var v any
			if err == nil {
				request.Hive = core.LocalHive
				v, err = h.Answer(r.Context(), request)
			}
			if err = answerOf(w, s, v, err); err != nil {
				fail(w, err)
			}
		})
	}
}
