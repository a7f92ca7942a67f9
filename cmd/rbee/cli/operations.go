package cli

import (
	"cmp"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core/operation"
)

// operationsCommand prints the table that everything else about operations is derived from, as
// compiled into this program. It asks no agent.
func operationsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "operations",
		Short: "List the operations, their commands and their routes",
		Long: `List the operations: what can be sent to POST /v1/jobs, the command that does it, and the route that
answers the same without a job. --format json shows each with the JSON schema of its request, as GET /v1/operations does.`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			infos := operation.Describe()
			t := term.NewTable("No operations.", "NUMBER", "OPERATION", "COMMAND", "GET", "SUMMARY")
			for _, o := range infos {
				number, command := "", ""
				if o.Number > 0 {
					number = strconv.Itoa(o.Number)
				}
				if len(o.CLI) > 0 {
					command = "rbee " + o.CLI[0]
				}
				t.Add(number, string(o.Name), command, cmp.Or(o.Get, "-"), o.Summary)
			}
			return a.show(infos, t.Write)
		},
	}
}
