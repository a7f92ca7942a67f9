//go:build race

package liveness_test

const raceDetector = true
