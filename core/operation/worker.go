package operation

import "github.com/rbee-project/rbee/core"

// The operations on the worker types and worker processes of a hive, and on the workers of the
// registry.
var ( // constant
	WorkerDownload = of[core.WorkerBinary](Spec{
		Name: core.OpWorkerDownload, Number: 1, Title: "WorkerDownload", Summary: "Install a worker type: fetch its engine, verify, unpack, publish and probe it.",
		Runs: RunsOnHive, CLI: []string{"worker download"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "type", Required: true, Doc: "worker type, such as cpu"},
			{Name: "version", Doc: "version of the engine, of its package or of the worker binary; empty: the plugin's first choice"},
			// An engine is code that the hive will run.
			{Name: "from", Scope: core.ScopeAdmin, Doc: "catalog reference of the engine instead of the plugin's own, which the hive must allow"},
			{Name: "force", Doc: "word to renew what is there already"},
		},
	})

	WorkerBuild = of[core.WorkerBinary](Spec{
		Name: core.OpWorkerBuild, Number: 2, Title: "WorkerBuild", Summary: "Build a worker plugin on the hive, run the conformance suite against it and publish it.",
		Runs: RunsOnHive, CLI: []string{"worker build"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "source", Required: true, Doc: "absolute path of a folder on the hive's machine, or package@version"},
			{Name: "type", Doc: "worker type to publish it as; empty: what the plugin calls itself"},
		},
	})

	WorkerUpgrade = of[core.UpgradeResult](Spec{
		Name: core.OpWorkerUpgrade, Title: "WorkerUpgrade", Summary: "Replace the workers of a type by such of its plugin as it is now; all stay as they are when one does not start.",
		Runs: RunsOnHive, CLI: []string{"worker upgrade"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "type", Required: true, Doc: "worker type, such as cpu"},
			{Name: "version", Doc: "version of the engine, of its package or of the worker binary; empty: the plugin's first choice"},
			{Name: "grace", Doc: "time that running requests of the replaced workers may continue"},
		},
	})

	WorkerBinaryList = of[[]core.WorkerBinary](Spec{
		Name: core.OpWorkerBinaryList, Number: 3, Title: "WorkerBinaryList", Summary: "List the worker binaries of a hive, damaged ones included.",
		Runs: RunsOnQueen, AsksHive: true, Get: "/v1/hives/{hive}/binaries", CLI: []string{"worker binary list"}, Test: "TestOperations",
		Fields: []Field{hiveField()},
	})

	WorkerBinaryGet = of[core.WorkerBinary](Spec{
		Name: core.OpWorkerBinaryGet, Number: 4, Title: "WorkerBinaryGet", Summary: "Show a worker binary with its files.",
		Runs: RunsOnQueen, AsksHive: true, Get: "/v1/hives/{hive}/binaries/{binary...}", CLI: []string{"worker binary get"}, Test: "TestOperations",
		Fields: []Field{hiveField(), {Name: "binary", Required: true, Doc: "worker type, or type@version"}},
	})

	WorkerBinaryDelete = of[core.WorkerBinary](Spec{
		Name: core.OpWorkerBinaryDelete, Number: 5, Title: "WorkerBinaryDelete", Summary: "Remove a worker binary that nothing runs from.",
		Runs: RunsOnHive, CLI: []string{"worker binary delete"}, Test: "TestOperations",
		Fields: []Field{{Name: "binary", Required: true, Doc: "worker type, or with several versions worker type@version"}},
	})

	WorkerSpawn = of[core.SpawnResult](Spec{
		Name: core.OpWorkerSpawn, Number: 6, Title: "WorkerSpawn", Summary: "Start a worker with a model, fetching what is missing.",
		Runs: RunsOnChosenHive, CLI: []string{"worker spawn"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "model", Required: true, Doc: "id, alias or catalog reference of a model"},
			{Name: "type", Doc: "worker type, or worker type@version; empty: the hive chooses"},
			{Name: "device", Doc: "device id, such as cuda:0; empty: the hive chooses"},
			{Name: "slots", Max: core.MaxSlots, Doc: "number of requests served at once; 0: the hive's default"},
			{Name: "context_tokens", Max: core.MaxContextTokens, Doc: "positions per slot; 0: as the model's other workers, else the model's own, as far as memory allows"},
			{Name: "replica_context", Max: core.MaxContextTokens, Doc: "positions per slot of the model's other workers; the queen fills it in"},
			{Name: "threads", Max: core.MaxThreads, Doc: "number of processor threads; 0: the hive's default"},
			{Name: "keep_alive", Max: 40, Doc: "time after its last request in which the worker unloads by itself: a duration, seconds, or default for the cluster's; empty or negative: it stays"},
			{Name: "pin", Doc: "word that the worker never makes room for another one, and never unloads by itself"},
			{Name: "replica", Scope: core.ScopeAdmin, Doc: "replica of a deployment that the worker is to be; the leader fills it in"},
		},
	})

	WorkerProcessList = of[[]core.Process](Spec{
		Name: core.OpWorkerProcessList, Number: 7, Title: "WorkerProcessList", Summary: "List the worker processes of a hive, as its operating system sees them.",
		Runs: RunsOnQueen, AsksHive: true, Get: "/v1/hives/{hive}/processes", CLI: []string{"worker process list"}, Test: "TestOperations",
		Fields: []Field{hiveField()},
	})

	WorkerProcessGet = of[core.Process](Spec{
		Name: core.OpWorkerProcessGet, Number: 8, Title: "WorkerProcessGet", Summary: "Show a worker process with command line, children, sockets and recent log.",
		Runs: RunsOnQueen, AsksHive: true, Get: "/v1/hives/{hive}/processes/{pid}", CLI: []string{"worker process get"}, Test: "TestOperations",
		Fields: []Field{hiveField(), {Name: "pid", Required: true, Doc: "process id of a worker process of the hive"}},
	})

	WorkerProcessDelete = of[core.ExitResult](Spec{
		Name: core.OpWorkerProcessDelete, Number: 9, Title: "WorkerProcessDelete", Summary: "End a worker process: drain, terminate, then kill.",
		Runs: RunsOnHive, CLI: []string{"worker process delete"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "pid", Required: true, Doc: "process id of a worker process of the hive"},
			{Name: "grace", Doc: "time that running requests may continue"},
			{Name: "now", Doc: "word to end the running requests at once"},
			keepStateField(),
		},
	})

	ActiveWorkerList = of[[]core.Worker](Spec{
		Name: core.OpActiveWorkerList, Number: 24, Title: "ActiveWorkerList", Summary: "List the workers of the registry.",
		Runs: RunsOnQueen, Registry: true, Get: "/v1/workers", CLI: []string{"worker list", "ps"}, Test: "TestOperations",
	})

	ActiveWorkerGet = of[core.Worker](Spec{
		Name: core.OpActiveWorkerGet, Number: 25, Title: "ActiveWorkerGet", Summary: "Show a worker of the registry.",
		Runs: RunsOnQueen, Registry: true, Get: "/v1/workers/{worker}", CLI: []string{"worker get"}, Test: "TestOperations",
		Fields: []Field{{Name: "worker", Required: true, Doc: "id of a worker, or a unique prefix of it"}},
	})

	ActiveWorkerRetire = of[core.ExitResult](Spec{
		Name: core.OpActiveWorkerRetire, Number: 26, Title: "ActiveWorkerRetire", Summary: "Give a worker no new request, let the running ones finish, then stop it.",
		Runs: RunsOnWorker, CLI: []string{"worker retire", "stop"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "worker", Required: true, Doc: "id of a worker, or a unique prefix of it"},
			{Name: "grace", Doc: "time that running requests may continue"},
			keepStateField(),
		},
	})
)

func keepStateField() Field {
	return Field{Name: "keep_state", Doc: "word to keep what the worker has read of conversations for the next one with its model, where its type has keep_state on"}
}

func workers() []Spec {
	return []Spec{
		WorkerDownload.Spec, WorkerBuild.Spec, WorkerUpgrade.Spec, WorkerBinaryList.Spec, WorkerBinaryGet.Spec,
		WorkerBinaryDelete.Spec, WorkerSpawn.Spec, WorkerProcessList.Spec, WorkerProcessGet.Spec,
		WorkerProcessDelete.Spec, ActiveWorkerList.Spec, ActiveWorkerGet.Spec, ActiveWorkerRetire.Spec,
	}
}
