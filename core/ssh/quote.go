package ssh

import (
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Quote quotes any text as one word for a POSIX shell: the shell reads exactly text. Errors:
// Invalid for a NUL byte, which no argument can hold.
func Quote(text string) (string, error) {
	if strings.ContainsRune(text, 0) {
		return "", core.Errorf(core.Invalid, "quote: an argument has a NUL byte")
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'", nil
}

// Command returns the command line that runs words[0] with the other words as its arguments, each
// quoted. Errors: Invalid.
func Command(words ...string) (string, error) {
	quoted := make([]string, len(words))
	for i, w := range words {
		var err error
		if quoted[i], err = Quote(w); err != nil {
			return "", err
		}
	}
	return strings.Join(quoted, " "), nil
}
