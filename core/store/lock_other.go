//go:build !unix

package store

import (
	"errors"
	"io/fs"
	"os"
)

// tryLock does nothing here: on this system only one process at a time may use a store.
func tryLock(*os.File) (bool, error) { return true, nil }

func noSpace(error) bool { return false }

func taken(err error) bool { return errors.Is(err, fs.ErrExist) }
