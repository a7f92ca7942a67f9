package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// days is a duration flag that also accepts days: "30d", "90m", "0".
type days time.Duration

// String implements pflag.Value.
func (d *days) String() string {
	v := time.Duration(*d)
	if day := 24 * time.Hour; v > 0 && v%day == 0 {
		return strconv.FormatInt(int64(v/day), 10) + "d"
	}
	return v.String()
}

// Type implements pflag.Value.
func (*days) Type() string { return "duration" }

// Set implements pflag.Value.
func (d *days) Set(text string) error {
	if number, ok := strings.CutSuffix(text, "d"); ok {
		const day = 24 * time.Hour
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/int64(day) {
			return fmt.Errorf("%q is not a number of days", text)
		}
		*d = days(time.Duration(n) * day)
		return nil
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 90m, 24h or 30d", text)
	}
	*d = days(v)
	return nil
}
