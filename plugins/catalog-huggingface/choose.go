package main

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// hubFile is a file of a repository.
type hubFile struct {
	path   string
	size   int64
	sha256 string // hex; empty if unknown
	cached bool   // in this machine's cache
}

// variant is one GGUF model of a repository: a file, or the parts of a split one in order.
type variant struct {
	quant string // upper case; empty: not in the name
	files []hubFile
	parts int  // expected number of parts
	named bool // the quantization is unique among the variants
}

var (
	partName = regexp.MustCompile(`^(.+)-([0-9]{5})-of-([0-9]{5})\.gguf$`)
	// A quantisation as llama.cpp and its publishers write it in names.
	quantInName = regexp.MustCompile(`(?i)(?:^|[-._/])((?:UD-)?(?:I?Q[1-8](?:_[0-9A-Z]+)*|TQ[12]_0|BF16|FP?16|FP?32|MXFP4(?:_MOE)?))(?:[-._/]|$)`)
)

// quantOf returns the quantisation in a path: the last one in the file's name, or else in its
// folders. stem has no file ending.
func quantOf(stem string) string {
	for _, part := range []string{path.Base(stem), path.Dir(stem)} {
		if all := quantInName.FindAllStringSubmatch(part, -1); len(all) > 0 {
			q := strings.ToUpper(all[len(all)-1][1])
			if bits, ok := strings.CutPrefix(q, "FP"); ok {
				return "F" + bits
			}
			return q
		}
	}
	return ""
}

// variants groups the GGUF models among files. It skips projectors of vision models and importance
// matrices, which are not models.
func variants(files []hubFile) []variant {
	byKey := map[string]*variant{}
	var keys []string
	for _, f := range files {
		lower := strings.ToLower(path.Base(f.path))
		if !strings.HasSuffix(lower, ".gguf") || strings.Contains(lower, "mmproj") || strings.Contains(lower, "imatrix") || !fileOK(f.path) {
			continue
		}
		key, parts := f.path, 1
		stem := f.path[:len(f.path)-len(".gguf")]
		if m := partName.FindStringSubmatch(f.path); m != nil {
			stem = m[1]
			key = m[1] + "-of-" + m[3]
			parts, _ = strconv.Atoi(m[3]) // five digits
		}
		v := byKey[key]
		if v == nil {
			v = &variant{quant: quantOf(stem), parts: parts}
			byKey[key] = v
			keys = append(keys, key)
		}
		v.files = append(v.files, f)
	}
	slices.Sort(keys)
	out := make([]variant, 0, len(keys))
	for _, k := range keys {
		v := byKey[k]
		slices.SortFunc(v.files, func(a, b hubFile) int { return cmp.Compare(a.path, b.path) })
		out = append(out, *v)
	}
	return out
}

// complete returns an error that names a missing part, if there is one.
func (v variant) complete() error {
	for i := range v.parts {
		if v.parts == 1 {
			break
		}
		want := fmt.Sprintf("-%05d-of-%05d.gguf", i+1, v.parts)
		if i >= len(v.files) || !strings.HasSuffix(v.files[i].path, want) {
			return fmt.Errorf("the repository has no part %d of %d: %w", i+1, v.parts, catalog.ErrIntegrity)
		}
	}
	return nil
}

// nearest returns the default order of quantisations: 4 bits of the K family first, then slightly
// larger ones, then smaller ones, then much larger ones. One with the prefix UD- follows the one
// without.
func nearest() []string {
	return []string{
		"Q4_K_M", "Q4_K_L", "Q4_K_XL", "Q4_K_S", "Q4_K", "IQ4_XS", "IQ4_NL", "MXFP4", "MXFP4_MOE", "Q4_0", "Q4_1",
		"Q5_K_M", "Q5_K_L", "Q5_K_XL", "Q5_K_S", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q6_K_L", "Q6_K_XL",
		"Q3_K_L", "Q3_K_XL", "Q3_K_M", "Q3_K", "IQ3_M", "Q3_K_S", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q8_0", "Q8_K_XL",
		"Q2_K_L", "Q2_K_XL", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "TQ1_0", "IQ1_M", "IQ1_S", "BF16", "F16", "F32",
	}
}

func rank(quant string) int {
	plain, ud := strings.CutPrefix(quant, "UD-")
	i := slices.Index(nearest(), plain)
	if i < 0 {
		i = len(nearest())
	}
	n := 2 * i
	if ud {
		n++
	}
	return n
}

// choose finds the variant that a reference means, with notes about the choice for the user.
func choose(ref reference, all []variant) (variant, []string, error) {
	if len(all) == 0 {
		return variant{}, nil, sdk.WithHint(fmt.Errorf("%s has no GGUF model: %w", ref.id(), catalog.ErrNotFound),
			"Look for a repository of the same model whose name ends in -GGUF: rbee catalog search %s.", ref.repo)
	}
	if ref.file != "" {
		return chooseFile(ref, all)
	}
	want := strings.ToUpper(ref.quant)
	var fit []variant
	if want != "" {
		for _, prefix := range []string{"", "UD-"} { // from publishers with several recipes
			if len(fit) == 0 {
				fit = having(all, prefix+want)
			}
		}
		if len(fit) == 0 {
			return variant{}, nil, sdk.WithHint(fmt.Errorf("%s has no quantisation %s: %w", ref.id(), ref.quant, catalog.ErrNotFound), "There are %s.", listed(all))
		}
	} else {
		best := slices.MinFunc(all, func(a, b variant) int {
			return cmp.Or(cmp.Compare(rank(a.quant), rank(b.quant)), cmp.Compare(a.quant, b.quant))
		})
		fit = having(all, best.quant)
	}
	if len(fit) > 1 {
		var names []string
		for _, v := range fit {
			names = append(names, v.files[0].path)
		}
		return variant{}, nil, sdk.WithHint(fmt.Errorf("%s has %d files that fit: %w", ref, len(fit), catalog.ErrInvalid),
			"Name the one you mean, such as hf:%s/%s. There are %s.", ref.id(), names[0], short(names))
	}
	v := fit[0]
	var notes []string
	if want == "" && len(all) > 1 {
		why := fmt.Sprintf("%s is chosen", v.quant)
		if !strings.HasSuffix(v.quant, "Q4_K_M") {
			why = fmt.Sprintf("there is no Q4_K_M, so %s is chosen", cmp.Or(v.quant, v.files[0].path))
		}
		notes = append(notes, fmt.Sprintf("%s of %s; hf:%s:QUANT asks for another", why, listed(all), ref.id()))
	}
	return v, notes, v.complete()
}

func chooseFile(ref reference, all []variant) (variant, []string, error) {
	for _, v := range all {
		if slices.ContainsFunc(v.files, func(f hubFile) bool { return f.path == ref.file }) {
			return v, nil, v.complete()
		}
	}
	var names []string
	for _, v := range all {
		names = append(names, v.files[0].path)
	}
	return variant{}, nil, sdk.WithHint(fmt.Errorf("%s has no GGUF model %s: %w", ref.id(), ref.file, catalog.ErrNotFound), "There are %s.", short(names))
}

func having(all []variant, quant string) []variant {
	var out []variant
	for _, v := range all {
		if v.quant == quant {
			out = append(out, v)
		}
	}
	return out
}

// listed lists the quantisations, nearest first, or the files if their names show none.
func listed(all []variant) string {
	var names []string
	for _, v := range slices.SortedStableFunc(slices.Values(all), func(a, b variant) int { return cmp.Compare(rank(a.quant), rank(b.quant)) }) {
		if name := cmp.Or(v.quant, v.files[0].path); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return short(names)
}

func short(names []string) string {
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// localName returns the local name of a model: its repository and quantization, written as on the
// Hub. If that is ambiguous, it is the file's name.
func localName(ref reference, v variant) string {
	name := "hf.co/" + ref.id()
	if v.named && v.quant != "" {
		return name + ":" + v.quant
	}
	file := v.files[0].path
	if m := partName.FindStringSubmatch(file); m != nil {
		return name + "/" + m[1]
	}
	return name + "/" + file[:len(file)-len(".gguf")]
}
