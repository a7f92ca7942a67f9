package state

import (
	"slices"

	"github.com/hashicorp/go-memdb"

	"github.com/rbee-project/rbee/core"
)

// Deployment returns the deployment with the name.
func (s *Snapshot) Deployment(ws memdb.WatchSet, name string) (core.Deployment, bool) {
	s.watch(ws)
	if d := first[core.Deployment](s.txn, ws, tableDeployments, text(name)); d != nil {
		return cloneDeployment(*d), true
	}
	return core.Deployment{}, false
}

// Deployments returns all deployments, sorted by name.
func (s *Snapshot) Deployments(ws memdb.WatchSet) []core.Deployment {
	s.watch(ws)
	return list(s.txn, ws, cloneDeployment, tableDeployments, indexPrefix, nil)
}

// Deployment returns the deployment with the name.
func (t *Txn) Deployment(name string) (core.Deployment, bool) {
	d, ok := row[core.Deployment](t, tableDeployments, name)
	return cloneDeployment(d), ok
}

// Deployments returns all deployments, sorted by name.
func (t *Txn) Deployments() []core.Deployment {
	return list(t.txn, nil, cloneDeployment, tableDeployments, indexPrefix, nil)
}

// PutDeployment stores a deployment.
func (t *Txn) PutDeployment(d core.Deployment) { t.insert(tableDeployments, &d) }

// DeleteDeployment removes a deployment if it exists.
func (t *Txn) DeleteDeployment(name string) { t.delete(tableDeployments, text(name)) }

func cloneDeployment(d core.Deployment) core.Deployment {
	d.DeploymentSpec = cloneSpec(d.DeploymentSpec)
	d.Placed, d.History = append([]core.Replica{}, d.Placed...), append([]core.DeploymentVersion{}, d.History...)
	for i := range d.History {
		d.History[i].Spec = cloneSpec(d.History[i].Spec)
	}
	return d
}

func cloneSpec(s core.DeploymentSpec) core.DeploymentSpec {
	s.Devices, s.Hives = slices.Clone(s.Devices), slices.Clone(s.Hives)
	return s
}
