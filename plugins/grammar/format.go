package grammar

// formats lists the string formats that are enforced, each as an intersection of regular
// expressions for the whole string; those that begin with ! must not match. Other formats are
// annotations, as JSON Schema defines them.
var formats = map[string][]string{
	"date":          {date},
	"time":          {clock + zone},
	"date-time":     {date + `[Tt]` + clock + zone},
	"duration":      {`P(?:\d+W|(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)(?:T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S))?|T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S))`},
	"email":         {`(?:` + atext + `+(?:\.` + atext + `+)*)@` + domain, `.{1,64}@.*`},
	"idn-email":     {`(?:` + atext + `+(?:\.` + atext + `+)*)@` + domain, `.{1,64}@.*`},
	"hostname":      {domain, `.{1,253}`},
	"idn-hostname":  {domain, `.{1,253}`},
	"ipv4":          {ipv4},
	"ipv6":          {ipv6},
	"uuid":          {`[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`},
	"uri":           {scheme + `:` + hierarchy},
	"iri":           {scheme + `:` + hierarchy},
	"uri-reference": {`(?:` + scheme + `:` + hierarchy + `|` + relative + `)`},
	"iri-reference": {`(?:` + scheme + `:` + hierarchy + `|` + relative + `)`},
	"json-pointer":  {`(?:/(?:[^~/]|~[01])*)*`},
	"relative-json-pointer": {
		`(?:0|[1-9]\d*)(?:#|(?:/(?:[^~/]|~[01])*)*)`,
	},
	"uri-template": {`(?:[\u0021\u0023-\u003b=?-\u005b\u005d_a-z~]|%[0-9a-fA-F]{2}|\{[+#./;?&]?` + varspec + `(?:,` + varspec + `)*\})*`},
}

// Building blocks of the formats.
const (
	date  = `(?:\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))|(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)`
	clock = `(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?`
	zone  = `(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)`

	atext  = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
	label  = `[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?`
	domain = label + `(?:\.` + label + `)*`

	octet = `(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)`
	ipv4  = octet + `(?:\.` + octet + `){3}`
	hex   = `[0-9a-fA-F]{1,4}`
	low32 = `(?:` + hex + `:` + hex + `|` + ipv4 + `)`
	ipv6  = `(?:(?:` + hex + `:){6}` + low32 +
		`|::(?:` + hex + `:){5}` + low32 +
		`|(?:` + hex + `)?::(?:` + hex + `:){4}` + low32 +
		`|(?:(?:` + hex + `:){0,1}` + hex + `)?::(?:` + hex + `:){3}` + low32 +
		`|(?:(?:` + hex + `:){0,2}` + hex + `)?::(?:` + hex + `:){2}` + low32 +
		`|(?:(?:` + hex + `:){0,3}` + hex + `)?::` + hex + `:` + low32 +
		`|(?:(?:` + hex + `:){0,4}` + hex + `)?::` + low32 +
		`|(?:(?:` + hex + `:){0,5}` + hex + `)?::` + hex +
		`|(?:(?:` + hex + `:){0,6}` + hex + `)?::)`

	scheme    = `[A-Za-z][A-Za-z0-9+.-]*`
	escaped   = `%[0-9a-fA-F]{2}`
	pchar     = `(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|` + escaped + `)`
	userinfo  = `(?:[A-Za-z0-9._~!$&'()*+,;=:-]|` + escaped + `)*`
	regName   = `(?:[A-Za-z0-9._~!$&'()*+,;=-]|` + escaped + `)*`
	authority = `(?:` + userinfo + `@)?(?:\[` + ipv6 + `\]|` + regName + `)(?::\d*)?`
	suffix    = `(?:\?(?:` + pchar + `|[/?])*)?(?:#(?:` + pchar + `|[/?])*)?`
	hierarchy = `(?://` + authority + `(?:/` + pchar + `*)*|/(?:` + pchar + `+(?:/` + pchar + `*)*)?|` + pchar + `+(?:/` + pchar + `*)*|)` + suffix
	relative  = `(?://` + authority + `(?:/` + pchar + `*)*|/(?:` + pchar + `+(?:/` + pchar + `*)*)?|` +
		`(?:[A-Za-z0-9._~!$&'()*+,;=@-]|` + escaped + `)+(?:/` + pchar + `*)*|)` + suffix

	varchar = `(?:[A-Za-z0-9_]|` + escaped + `)`
	varspec = varchar + `(?:\.?` + varchar + `)*(?::[1-9]\d{0,3}|\*)?`
)
