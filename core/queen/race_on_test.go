//go:build race

package queen

const raceDetector = true
