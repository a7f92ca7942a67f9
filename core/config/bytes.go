package config

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// units lists the units of Bytes, the largest first.
func units() []struct {
	name string
	size Bytes
} {
	return []struct {
		name string
		size Bytes
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}}
}

// parseBytes reads a size.
func parseBytes(text string) (Bytes, error) {
	bad := fmt.Errorf("%q is not a size: write a number and a unit, such as \"50MiB\" or \"1.5GB\"", text)
	number, size := strings.TrimSpace(text), Bytes(1)
	for _, u := range units() {
		if len(number) > len(u.name) && strings.EqualFold(number[len(number)-len(u.name):], u.name) {
			number, size = strings.TrimSpace(number[:len(number)-len(u.name)]), u.size
			break
		}
	}
	if strings.ContainsFunc(number, func(r rune) bool { return (r < '0' || r > '9') && r != '.' }) {
		return 0, bad
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || v*float64(size) > math.MaxInt64/2 {
		return 0, bad
	}
	return Bytes(v * float64(size)), nil
}

// String formats the size so that parseBytes can read it.
func (b Bytes) String() string {
	for _, u := range units() {
		if b >= u.size && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText formats the size as String does.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

func checkAllowAddresses(c *Config) string {
	for _, text := range c.Hive.Download.AllowAddresses {
		if _, err := netip.ParsePrefix(text); err == nil {
			continue
		}
		if _, err := netip.ParseAddr(text); err != nil {
			return fmt.Sprintf("%q is neither an address nor a prefix: write \"10.0.0.0/8\", \"192.168.1.7\" or \"fd00::/8\".", text)
		}
	}
	return ""
}
