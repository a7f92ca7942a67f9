package jinja

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// strftime formats a time as Python does in the C locale. Unknown codes stay as they are.
func strftime(t time.Time, format Text) Text {
	var b textBuilder
	chars := slices.Collect(format.chars())
	for i := 0; i < len(chars); i++ {
		c := chars[i]
		if c.text != "%" || i+1 == len(chars) {
			b.addString(c.text, c.client)
			continue
		}
		i++
		code := chars[i].text
		plain := false
		if code == "-" && i+1 < len(chars) { // %-d: without leading zeros
			i++
			code, plain = chars[i].text, true
		}
		text, ok := strftimeCode(t, code)
		if !ok {
			b.addString("%"+code, c.client)
			continue
		}
		if plain {
			for len(text) > 1 && text[0] == '0' {
				text = text[1:]
			}
		}
		b.addString(text, false)
	}
	return b.text()
}

func strftimeCode(t time.Time, code string) (string, bool) {
	layouts := map[string]string{
		"a": "Mon", "A": "Monday", "b": "Jan", "h": "Jan", "B": "January", "d": "02", "e": "_2", "H": "15", "I": "03", "m": "01", "M": "04",
		"p": "PM", "S": "05", "y": "06", "Y": "2006", "z": "-0700", "Z": "MST", "D": "01/02/06", "F": "2006-01-02", "T": "15:04:05",
		"R": "15:04", "c": "Mon Jan _2 15:04:05 2006", "x": "01/02/06", "X": "15:04:05",
	}
	if layout, ok := layouts[code]; ok {
		return t.Format(layout), true
	}
	switch code {
	case "%":
		return "%", true
	case "n":
		return "\n", true
	case "t":
		return "\t", true
	case "j":
		return fmt.Sprintf("%03d", t.YearDay()), true
	case "w":
		return strconv.Itoa(int(t.Weekday())), true
	case "u":
		return strconv.Itoa((int(t.Weekday())+6)%7 + 1), true
	case "f":
		return fmt.Sprintf("%06d", t.Nanosecond()/1000), true
	case "s":
		return strconv.FormatInt(t.Unix(), 10), true
	}
	return "", false
}
