//go:build !unix

package node_test

const fullDir = "RBEE_TEST_FULL_DIR"

func fill(string) error { return nil }
