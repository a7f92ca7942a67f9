package llamacpp

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// keepingWorker starts a worker that keeps states in a file. end stops it.
func keepingWorker(t *testing.T, file, digest, config string) (w *testWorker, end func()) {
	t.Helper()
	b, spec := newWorkerOf(t, tinyModel(t), 2, 1024, config)
	spec.StateFile, spec.ModelDigest = file, digest
	return serveWorker(t, b, spec)
}

const (
	keepConfig = `{"keep_state":true,"prefix_store_mib":64}`
	keepDigest = "sha256:aa"
)

// A model that is unloaded and loaded again continues its conversations: by the engine's counters,
// it evaluates only their new tokens. This includes conversations that had lost their slot.
func TestStatesSurviveSwap(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	loop, questions := plainLoop(t), recordQuestions()
	var talks [3]talk
	for i := range talks {
		talks[i] = talk{loop: loop, messages: []openai.Message{{Role: "system", Content: openai.TextContent("You answer questions about bees, hives and queens, briefly.")}}}
	}
	for life := range 3 {
		w, end := keepingWorker(t, file, keepDigest, keepConfig)
		must.FileNotExists(t, file) // it is removed once read
		for i := range talks {
			talks[i].w = w
			prompt, evaluated, fresh := talks[i].say(t, questions[(life+3*i)%len(questions)])
			t.Logf("life %d, conversation %d: prompt of %d tokens, %d new, %d evaluated", life, i, prompt, fresh, evaluated)
			if life > 0 {
				must.Between(t, fresh, evaluated, fresh+respelled)
			}
		}
		end()
		info, err := os.Stat(file)
		must.NoError(t, err)
		must.Eq(t, os.FileMode(0o600), info.Mode())
	}
}

// By default no user text reaches a disk, and states kept by an earlier worker are removed.
func TestStatesNotKeptByDefault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	for name, config := range map[string]string{"by default": "", "without a store": `{"keep_state":true,"prefix_store_mib":0}`} {
		t.Run(name, func(t *testing.T) {
			must.NoError(t, os.WriteFile(file, []byte("something"), 0o600))
			w, end := keepingWorker(t, file, keepDigest, config)
			w.chat(t, question("What is a queen?", `,"max_tokens":4`))
			must.FileNotExists(t, file)
			end()
			must.FileNotExists(t, file)
		})
	}
	w, end := keepingWorker(t, file, "", keepConfig) // the host does not identify the model
	w.chat(t, question("What is a queen?", `,"max_tokens":4`))
	end()
	must.FileNotExists(t, file)
}

// A file that was not written by a worker with the same model, engine and settings is removed
// unused, and the worker starts: no byte of it reaches the engine.
func TestKeptStatesAreChecked(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "state")
	w, end := keepingWorker(t, file, keepDigest, keepConfig)
	const body = `{"messages":[{"role":"user","content":"Tell me a short story about a bee named Pip."}],"temperature":0,"max_tokens":8}`
	w.chat(t, body)
	end()
	good, err := os.ReadFile(file)
	must.NoError(t, err)
	reused := func(t *testing.T, digest, config string) int {
		t.Helper()
		w, end := keepingWorker(t, file, digest, config)
		defer end()
		must.FileNotExists(t, file)
		return w.chat(t, body).Usage.PromptTokensDetails.CachedTokens
	}
	changed := func(at int, to byte) []byte {
		out := append([]byte{}, good...)
		out[at] ^= to
		return out
	}
	must.NoError(t, os.WriteFile(file, good, 0o600))
	must.Positive(t, reused(t, keepDigest, keepConfig))
	for name, content := range map[string][]byte{
		"a flipped bit of a state": changed(len(good)-100, 1), "of the checksum": changed(len(good)-1, 1), "of a length": changed(len(keepMagic)+32+7, 0x40),
		"cut short": good[:len(good)-40], "too long": append(append([]byte{}, good...), 0), "empty": {}, "something else": []byte("GGUF something else altogether"),
	} {
		t.Run(name, func(t *testing.T) {
			must.NoError(t, os.WriteFile(file, content, 0o600))
			must.Zero(t, reused(t, keepDigest, keepConfig))
		})
	}
	t.Run("another model", func(t *testing.T) {
		must.NoError(t, os.WriteFile(file, good, 0o600))
		must.Zero(t, reused(t, "sha256:bb", keepConfig))
	})
	t.Run("another cache type", func(t *testing.T) {
		must.NoError(t, os.WriteFile(file, good, 0o600))
		must.Zero(t, reused(t, keepDigest, `{"keep_state":true,"prefix_store_mib":64,"kv_cache_type":"f32"}`))
	})
	t.Run("another adapter", func(t *testing.T) {
		must.NoError(t, os.WriteFile(file, good, 0o600))
		k := keeper{path: file, limit: 1 << 30, slotTokens: 1024, vocab: 1 << 20}
		_, err := k.take()
		must.ErrorContains(t, err, "another model, engine or configuration")
	})
	t.Run("more than allowed", func(t *testing.T) {
		must.NoError(t, os.WriteFile(file, good, 0o600))
		k := keeper{path: file, limit: int64(len(good)) - 1, slotTokens: 1024, vocab: 1 << 20}
		_, err := k.take()
		must.ErrorContains(t, err, "more than keep_state_mib allows")
		must.FileNotExists(t, file)
	})
	t.Run("a link", func(t *testing.T) {
		other := filepath.Join(dir, "other")
		must.NoError(t, os.WriteFile(other, good, 0o600))
		must.NoError(t, os.Symlink(other, file))
		must.Zero(t, reused(t, keepDigest, keepConfig))
		must.FileExists(t, other)
	})
	t.Run("a folder", func(t *testing.T) {
		must.NoError(t, os.Remove(file)) // kept by the previous worker
		must.NoError(t, os.Mkdir(file, 0o700))
		must.Zero(t, reused(t, keepDigest, keepConfig))
	})
}

// A worker reports the hashes of its blocks with a key, and none without.
func TestStatusBlocks(t *testing.T) {
	texts := map[string][]uint64{}
	for name, key := range map[string]string{"one": "k1", "the same": "k1", "another": "k2", "none": ""} {
		b, spec := newWorkerOf(t, tinyModel(t), 1, 1024, "")
		spec.PrefixKey = []byte(key)
		w, end := serveWorker(t, b, spec)
		w.chat(t, question("Tell me a short story about a bee named Pip.", `,"max_tokens":80,"ignore_eos":true`))
		st, err := b.Status(t.Context())
		must.NoError(t, err)
		texts[name] = st.PrefixBlocks
		if key == "" {
			must.Zero(t, st.PrefixBlockTokens)
			must.SliceEmpty(t, st.PrefixBlocks)
		} else {
			must.Positive(t, st.PrefixBlockTokens)
			must.Len(t, (st.KVUsedTokens+int(st.PromptTokensTotal)+79)/st.PrefixBlockTokens, st.PrefixBlocks)
		}
		end()
	}
	must.Eq(t, texts["one"], texts["the same"])
	must.NotEq(t, texts["one"], texts["another"])
}

// FuzzKeptStates reads arbitrary state files: the result is sequences or an error, and all memory
// is freed.
func FuzzKeptStates(f *testing.F) {
	f.Add([]byte(keepMagic))
	f.Add(append([]byte(keepMagic), make([]byte, 200)...))
	f.Fuzz(func(t *testing.T, content []byte) {
		file := filepath.Join(t.TempDir(), "state")
		must.NoError(t, os.WriteFile(file, content, 0o600))
		list, err := keeper{path: file, limit: 1 << 20, slotTokens: 64, vocab: 100}.take()
		if err != nil {
			must.SliceEmpty(t, list)
		}
		freeAll(list)
		must.FileNotExists(t, file)
	})
}
