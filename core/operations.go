package core

// Operations lists every operation, in the order of the contract. To add one, add its entry here, and its function where Runs says.
func Operations() []OperationSpec {
	return []OperationSpec{
		{
			Name: OpWorkerDownload, Number: 1, Title: "WorkerDownload", Summary: "Install a worker type: fetch its engine, verify, unpack, publish and probe it.",
			Runs: RunsOnHive, Result: WorkerBinary{}, CLI: []string{"worker download"}, Test: "",
			Fields: []FieldSpec{
				{Name: "type", Required: true, Doc: "worker type, such as cpu"},
				{Name: "from", Doc: "catalog reference of the engine instead of the plugin's own"},
				{Name: "force", Doc: "word to renew what is there already"},
			},
		},
		{
			Name: OpWorkerSpawn, Number: 6, Title: "WorkerSpawn", Summary: "Start a worker with a model, fetching what is missing.",
			Runs: RunsOnChosenHive, Result: SpawnResult{}, CLI: []string{"worker spawn"}, Test: "",
			Fields: []FieldSpec{
				{Name: "model", Required: true, Doc: "id, alias or catalog reference of a model"},
				{Name: "type", Doc: "worker type; empty: the hive chooses"},
				{Name: "device", Doc: "device id, such as cuda:0; empty: the hive chooses"},
				{Name: "slots", Max: MaxSlots, Doc: "number of requests served at once; 0: the hive's default"},
				{Name: "context_tokens", Max: MaxContextTokens, Doc: "positions per slot; 0: the model's own, as far as memory allows"},
				{Name: "threads", Max: MaxThreads, Doc: "number of processor threads; 0: the hive's default"},
			},
		},
		{
			Name: OpWorkerProcessDelete, Number: 9, Title: "WorkerProcessDelete", Summary: "End a worker process: drain, terminate, then kill.",
			Runs: RunsOnHive, Result: ExitResult{}, CLI: []string{"worker process delete"}, Test: "",
			Fields: []FieldSpec{
				{Name: "pid", Required: true, Doc: "process id of a worker process of the hive"},
				{Name: "grace", Doc: "time that running requests may go on"},
			},
		},
		{
			Name: OpModelDownload, Number: 10, Title: "ModelDownload", Summary: "Fetch a model into the hive's store.",
			Runs: RunsOnChosenHive, Result: Model{}, CLI: []string{"model download", "pull"}, Test: "",
			Fields: []FieldSpec{{Name: "model", Required: true, Doc: "catalog reference, or the name of a model in a catalog source"}},
		},
		{
			Name: OpModelDelete, Number: 13, Title: "ModelDelete", Summary: "Delete a model from the hive's store, and those of its files that no other model needs.",
			Runs: RunsOnHive, Result: ModelDeleteResult{}, CLI: []string{"model delete", "rm"}, Test: "",
			Fields: []FieldSpec{
				{Name: "model", Required: true, Doc: "id or alias of a model of the hive"},
				{Name: "dry_run", Doc: "word to only say what would be freed"},
			},
		},
		{
			Name: OpActiveWorkerRetire, Number: 26, Title: "ActiveWorkerRetire", Summary: "Give a worker no new request, let the running ones finish, then stop it.",
			Runs: RunsOnWorker, Result: ExitResult{}, CLI: []string{"worker retire", "stop"}, Test: "",
			Fields: []FieldSpec{
				{Name: "worker", Required: true, Doc: "id of a worker, or a unique prefix of it"},
				{Name: "grace", Doc: "time that running requests may go on"},
			},
		},
	}
}
