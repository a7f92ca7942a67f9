package main

import (
	"testing"

	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

// The suite is what "rbee plugin test" runs against the executable.
func TestConformance(t *testing.T) {
	t.Parallel()
	sdktest.Catalog(t, sdktest.CatalogInProcess(func() catalog.Source { return source().Source() }),
		sdktest.CatalogOptions{Ref: "hello", NoRef: "goodbye", Query: "hello"})
}
