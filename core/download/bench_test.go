package download_test

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/store"
)

// BenchmarkDownload fetches a file of RBEE_BENCH_MIB (default 1024) MiB into a store, with its
// digest verified and everything on disk, alternating with `curl -o`, which does neither. The
// server runs in this process, so it shares the garbage collector with the measured code but not
// with curl. of-curl is the ratio for a hive with the default configuration: four connections.
// Goal: 0.9 or more.
func BenchmarkDownload(b *testing.B) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		b.Skip("curl is missing")
	}
	mib, err := strconv.Atoi(cmp.Or(os.Getenv("RBEE_BENCH_MIB"), "1024"))
	must.NoError(b, err)
	dir := b.TempDir()
	big := filepath.Join(dir, "big.bin")
	f, err := os.Create(big)
	must.NoError(b, err)
	sum := sha256.New()
	part := noise(1 << 20)
	for i := range mib {
		part[0], part[1] = byte(i), byte(i>>8)
		_, err := io.MultiWriter(f, sum).Write(part)
		must.NoError(b, err)
	}
	must.NoError(b, f.Sync())
	must.NoError(b, f.Close())
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	size := int64(mib) << 20
	spec := modelOf(b, size, fmt.Sprintf("sha256:%x", sum.Sum(nil)))
	rate := func(d time.Duration) float64 { return float64(size) / d.Seconds() / 1e6 }

	ours := func(connections int) float64 {
		folder := filepath.Join(dir, "store")
		s, err := store.Open(folder, nil)
		must.NoError(b, err)
		defer os.RemoveAll(folder)
		defer s.Close()
		o := options(b)
		o.Connections = connections
		_, err = s.PutModel(b.Context(), store.ModelSpec{ID: "tiny", Ref: "bench:tiny", Files: spec.Files[:1]}, from("", o), nil)
		must.NoError(b, err)
		began := time.Now()
		_, err = s.PutModel(b.Context(), spec, from(server.URL+"/big.bin", o), nil)
		must.NoError(b, err)
		return rate(time.Since(began))
	}
	theirs := func() float64 {
		out := filepath.Join(dir, "curl.out")
		defer os.Remove(out)
		began := time.Now()
		must.NoError(b, exec.CommandContext(b.Context(), curl, "-s", "-o", out, server.URL+"/big.bin").Run())
		return rate(time.Since(began))
	}
	var curls, ones, fours []float64
	for b.Loop() {
		curls, ones, fours = append(curls, theirs()), append(ones, ours(1)), append(fours, ours(4))
	}
	b.ReportMetric(0, "ns/op")
	c := median(curls)
	b.ReportMetric(c, "curl-MB/s")
	b.ReportMetric(median(ones), "rbee-1-MB/s")
	b.ReportMetric(median(fours), "rbee-4-MB/s")
	b.ReportMetric(median(ones)/c, "of-curl-by-1")
	b.ReportMetric(median(fours)/c, "of-curl")
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
