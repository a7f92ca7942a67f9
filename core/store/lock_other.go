//go:build !unix

package store

import (
	"errors"
	"io/fs"
	"os"
)

// tryLock does nothing here: on this system one store is for one process.
func tryLock(*os.File) (bool, error) { return true, nil }

func noSpace(error) bool { return false }

func taken(err error) bool { return errors.Is(err, fs.ErrExist) }
