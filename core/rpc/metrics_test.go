package rpc_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/rpc"
)

func TestCountRefusals(t *testing.T) {
	t.Parallel()
	to := prometheus.NewPedanticRegistry()
	count, err := rpc.CountRefusals(to)
	must.NoError(t, err)
	count("role")
	count("role")
	families, err := to.Gather()
	must.NoError(t, err)
	must.Len(t, 1, families)
	must.Eq(t, "rbee_rpc_refused_total", families[0].GetName())
	must.Eq(t, 2, families[0].GetMetric()[0].GetCounter().GetValue())
	_, err = rpc.CountRefusals(to) // already registered
	must.Error(t, err)
}
