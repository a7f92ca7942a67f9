package cli

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/core/scaffold"
)

func pluginNewCommand(a *app) *cobra.Command {
	var o scaffold.Options
	cmd := &cobra.Command{
		Use:   "new worker|catalog NAME",
		Short: "Write the Go module of a new plugin",
		Long: `Write the Go module of a new plugin: one that builds, and passes the conformance suite. The SDK comes with rbee's own module: this program's version of it, or what --sdk says.
With a checkout of rbee the module builds as it is; otherwise "go mod tidy" fetches the SDK first.`,
		Example:   "  rbee plugin new worker mine\n  rbee plugin new catalog shelf --module example.org/shelf --sdk ~/src/rbee",
		Args:      exactly("worker|catalog", "NAME"),
		ValidArgs: []string{"worker", "catalog"},
	}
	cmd.RunE = do(func(_ context.Context, _ *cobra.Command, args []string) error {
		o.Kind, o.Name = args[0], args[1]
		if o.Dir == "" {
			o.Dir = "rbee-" + o.Kind + "-" + o.Name
		}
		if o.SDK == "" {
			if o.SDK = a.build.published(); o.SDK == "" {
				return usageHint("Give --sdk: a folder with a checkout of rbee, or a version of it.", "this build of rbee was published nowhere, so that there is no SDK of its version")
			}
		}
		r, err := scaffold.Write(o)
		if err != nil {
			return err
		}
		return a.show(r, func(w io.Writer) error {
			tidy := ""
			if !r.Complete {
				tidy = "  go mod tidy\n"
			}
			ref := ""
			if o.Kind == "catalog" {
				ref = " --ref hello"
			}
			_, err := fmt.Fprintf(w, "Wrote %s in %s. Next:\n  cd %s\n%s  CGO_ENABLED=0 go build -tags grpcnotrace -o %s .\n  rbee plugin test ./%s%s\n",
				strings.Join(r.Files, ", "), o.Dir, o.Dir, tidy, r.Executable, r.Executable, ref)
			return err
		})
	})
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", "", "`FOLDER` to write to (default: rbee-KIND-NAME)")
	f.StringVar(&o.Path, "module", "", "`PATH` of the module (default: example.org/rbee-KIND-NAME)")
	f.StringVar(&o.SDK, "sdk", "", "`FOLDER` of a checkout of rbee, or VERSION of it (default: the version of this program)")
	return cmd
}

var (
	releaseVersion = regexp.MustCompile(`^v?(\d+\.\d+\.\d+)$`)
	cleanCommit    = regexp.MustCompile(`^[0-9a-f]{7,40}$`)
)

// published returns the go command's version for this build: a release's version, or a commit.
// Empty: it has unpublished changes.
func (b build) published() string {
	if m := releaseVersion.FindStringSubmatch(b.Version); m != nil {
		return "v" + m[1]
	}
	if cleanCommit.MatchString(b.Commit) {
		return b.Commit
	}
	return ""
}
