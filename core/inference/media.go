package inference

import (
	"maps"
	"slices"

	"github.com/rbee-project/rbee/core"
)

// Media is a non-text route of a worker: its answers are passed on unchanged.
type Media struct {
	Need string // required capability
	Form bool   // the request is a form with files; otherwise JSON
}

// media holds these routes, by path.
var media = map[string]Media{
	"/v1/audio/transcriptions": {core.CapabilityTranscription, true},
	"/v1/audio/translations":   {core.CapabilityTranslation, true},
	"/v1/audio/speech":         {core.CapabilitySpeech, false},
	"/v1/images/generations":   {core.CapabilityImages, false},
	"/v1/images/edits":         {core.CapabilityImageEdit, true},
	"/v1/images/variations":    {core.CapabilityImageEdit, true},
	"/v1/moderations":          {core.CapabilityModeration, false},
}

// MediaOf returns the media route for a path, and whether it is one.
func MediaOf(path string) (Media, bool) {
	m, ok := media[path]
	return m, ok
}

// MediaPaths returns the paths, sorted.
func MediaPaths() []string { return slices.Sorted(maps.Keys(media)) }

// isMedia reports whether a capability belongs to a media route.
func isMedia(need string) bool {
	for _, m := range media {
		if m.Need == need {
			return true
		}
	}
	return false
}
