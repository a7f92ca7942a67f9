package rpc

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rbee-project/rbee/core"
)

// CountRefusals registers rbee_rpc_refused_total on to and returns the function that counts one
// refused connection or call of another machine. It is safe for concurrent use.
func CountRefusals(to prometheus.Registerer) (func(Reason), error) {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "rbee_rpc", Name: "refused_total", Help: "Connections and calls of other machines that were refused, by reason.",
	}, []string{"reason"})
	if err := to.Register(refused); err != nil {
		return nil, core.Wrap(err, core.Internal, "register metrics")
	}
	return func(r Reason) { refused.WithLabelValues(string(r)).Inc() }, nil
}
