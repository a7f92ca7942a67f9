package core

import "slices"

// Operations lists every operation, in the order of the contract. To add one, add its entry here,
// and its function where Runs says.
func Operations() []OperationSpec {
	// Those who may take machines into the cluster may use the SSH identity of a queen.
	overSSH := []FieldSpec{
		{Name: "host", Required: true, Doc: "alias of ~/.ssh/config, host name or IP address; or the name of a hive that was installed there", Max: 253},
		{Name: "user", Doc: "user to log in as; empty: what ~/.ssh/config says, else whoever runs the agent", Max: 64},
		{Name: "port", Doc: "port of the SSH server; 0: what ~/.ssh/config says, else 22", Max: 65535},
		{Name: "host_key", Doc: "fingerprint of an unknown host key that is accepted, SHA256:…", Max: 100},
		{Name: "accept_new", Doc: "word to accept any unknown host key; a changed one never is"},
	}
	hiveField := FieldSpec{Name: "hive", Required: true, Doc: "id or name of a hive"}
	return []OperationSpec{
		{
			Name: OpWorkerDownload, Number: 1, Title: "WorkerDownload", Summary: "Install a worker type: fetch its engine, verify, unpack, publish and probe it.",
			Runs: RunsOnHive, Result: WorkerBinary{}, CLI: []string{"worker download"}, Test: "TestOperations",
			Fields: []FieldSpec{
				{Name: "type", Required: true, Doc: "worker type, such as cpu"},
				{Name: "version", Doc: "version of the engine, of its package or of the worker binary; empty: the plugin's first choice"},
				// An engine is code that the hive runs.
				{Name: "from", Scope: ScopeAdmin, Doc: "catalog reference of the engine instead of the plugin's own, which the hive must allow"},
				{Name: "force", Doc: "word to renew what is there already"},
			},
		},
		{
			Name: OpWorkerBuild, Number: 2, Title: "WorkerBuild", Summary: "Build a worker plugin on the hive, run the conformance suite against it and publish it.",
			Runs: RunsOnHive, Result: WorkerBinary{}, CLI: []string{"worker build"}, Test: "TestOperations",
			Fields: []FieldSpec{
				{Name: "source", Required: true, Doc: "absolute path of a folder on the hive's machine, or package@version"},
				{Name: "type", Doc: "worker type to publish it as; empty: what the plugin calls itself"},
			},
		},
		{
			Name: OpWorkerBinaryList, Number: 3, Title: "WorkerBinaryList", Summary: "List the worker binaries of a hive, damaged ones included.",
			Runs: RunsOnQueen, Result: []WorkerBinary{}, Get: "/v1/hives/{hive}/binaries", CLI: []string{"worker binary list"}, Test: "TestOperations",
			Fields: []FieldSpec{hiveField},
		},
		{
			Name: OpWorkerBinaryGet, Number: 4, Title: "WorkerBinaryGet", Summary: "Show a worker binary with its files.",
			Runs: RunsOnQueen, Result: WorkerBinary{}, Get: "/v1/hives/{hive}/binaries/{id...}", CLI: []string{"worker binary get"}, Test: "TestOperations",
			Fields: []FieldSpec{hiveField, {Name: "binary", Required: true, Doc: "worker type, or type@version"}},
		},
		{
			Name: OpWorkerBinaryDelete, Number: 5, Title: "WorkerBinaryDelete", Summary: "Remove a worker binary that nothing runs from.",
			Runs: RunsOnHive, Result: WorkerBinary{}, CLI: []string{"worker binary delete"}, Test: "TestOperations",
			Fields: []FieldSpec{{Name: "binary", Required: true, Doc: "worker type, or with several versions worker type@version"}},
		},
		{
			Name: OpWorkerSpawn, Number: 6, Title: "WorkerSpawn", Summary: "Start a worker with a model, fetching what is missing.",
			Runs: RunsOnChosenHive, Result: SpawnResult{}, CLI: []string{"worker spawn"}, Test: "TestOperations",
			Fields: []FieldSpec{
				{Name: "model", Required: true, Doc: "id, alias or catalog reference of a model"},
				{Name: "type", Doc: "worker type, or worker type@version; empty: the hive chooses"},
				{Name: "device", Doc: "device id, such as cuda:0; empty: the hive chooses"},
				{Name: "slots", Max: MaxSlots, Doc: "number of requests served at once; 0: the hive's default"},
				{Name: "context_tokens", Max: MaxContextTokens, Doc: "positions per slot; 0: the model's own, as far as memory allows"},
				{Name: "threads", Max: MaxThreads, Doc: "number of processor threads; 0: the hive's default"},
			},
		},
		{
			Name: OpWorkerProcessList, Number: 7, Title: "WorkerProcessList", Summary: "List the worker processes of a hive, as its operating system sees them.",
			Runs: RunsOnQueen, Result: []Process{}, Get: "/v1/hives/{hive}/processes", CLI: []string{"worker process list"}, Test: "TestOperations",
			Fields: []FieldSpec{hiveField},
		},
		{
			Name: OpWorkerProcessGet, Number: 8, Title: "WorkerProcessGet", Summary: "Show a worker process with command line, children, sockets and recent log.",
			Runs: RunsOnQueen, Result: Process{}, Get: "/v1/hives/{hive}/processes/{pid}", CLI: []string{"worker process get"}, Test: "TestOperations",
			Fields: []FieldSpec{hiveField, {Name: "pid", Required: true, Doc: "process id of a worker process of the hive"}},
		},
		{
			Name: OpWorkerProcessDelete, Number: 9, Title: "WorkerProcessDelete", Summary: "End a worker process: drain, terminate, then kill.",
			Runs: RunsOnHive, Result: ExitResult{}, CLI: []string{"worker process delete"}, Test: "TestOperations",
			Fields: []FieldSpec{
				{Name: "pid", Required: true, Doc: "process id of a worker process of the hive"},
				{Name: "grace", Doc: "time that running requests may go on"},
				{Name: "now", Doc: "word to end the running requests at once"},
			},
		},
		{
			Name: OpModelDownload, Number: 10, Title: "ModelDownload", Summary: "Fetch a model into the hive's store.",
			Runs: RunsOnChosenHive, Result: Model{}, CLI: []string{"model download", "pull"}, Test: "TestOperations",
			Fields: []FieldSpec{{Name: "model", Required: true, Doc: "catalog reference, or the name of a model in a catalog source"}},
		},
		{
			Name: OpModelList, Number: 11, Title: "ModelList", Summary: "List the models of a hive, or of the whole cluster.",
			Runs: RunsOnQueen, Result: []Model{}, Get: "/v1/hives/{hive}/models", CLI: []string{"model list", "ls"}, Test: "TestOperations",
			Fields: []FieldSpec{{Name: "hive", Doc: "id or name of a hive; empty: the whole cluster"}},
		},
		{
			Name: OpModelGet, Number: 12, Title: "ModelGet", Summary: "Show a model with its facts and files.",
			Runs: RunsOnQueen, Result: Model{}, Get: "/v1/hives/{hive}/models/{id...}", CLI: []string{"model get"}, Test: "TestOperations",
			Fields: []FieldSpec{
				{Name: "model", Required: true, Doc: "id or alias of a model"},
				{Name: "hive", Doc: "id or name of a hive; empty: any that has it"},
			},
		},
		{
			Name: OpModelDelete, Number: 13, Title: "ModelDelete", Summary: "Delete a model from the hive's store, and those of its files that no other model needs.",
			Runs: RunsOnHive, Result: ModelDeleteResult{}, CLI: []string{"model delete", "rm"}, Test: "TestOperations",
			Fields: []FieldSpec{
				{Name: "model", Required: true, Doc: "id or alias of a model of the hive"},
				{Name: "dry_run", Doc: "word to only say what would be freed"},
			},
		},
		{
			Name: OpHiveList, Number: 14, Title: "HiveList", Summary: "List the hives of the cluster.",
			Runs: RunsOnQueen, Result: []Hive{}, Get: "/v1/hives", CLI: []string{"hive list"}, Test: "TestOperations",
		},
		{
			Name: OpHiveGet, Number: 15, Title: "HiveGet", Summary: "Show a hive with its devices.",
			Runs: RunsOnQueen, Result: Hive{}, Get: "/v1/hives/{hive}", CLI: []string{"hive get"}, Test: "TestOperations",
			Fields: []FieldSpec{hiveField},
		},
		{
			Name: OpHiveInstall, Number: 16, Title: "HiveInstall", Summary: "Install a hive on another machine, or upgrade it: copy, configure, join, start.",
			Runs: RunsOverSSH, Scope: ScopeAdmin, Result: InstallResult{}, CLI: []string{"hive install"}, Test: "TestHivesOverSSH",
			Fields: append(slices.Clone(overSSH),
				FieldSpec{Name: "system", Doc: "word to install for the whole machine, with sudo; otherwise it is for the user who logs in"},
				FieldSpec{Name: "service", Enum: []string{"auto", "systemd-user", "systemd-system", "launchd", "none"}, Doc: "way in which the hive is kept running; empty: auto"},
				FieldSpec{Name: "from", Doc: "folder with releases, on the queen's machine; empty: the queen's own build", Max: 4096},
				FieldSpec{Name: "force", Doc: "word to install what is installed already"},
				FieldSpec{Name: "name", Doc: "name of the hive; empty: the host", Max: 63},
				FieldSpec{Name: "bind", Doc: "IP address that the hive listens on; empty: all", Max: 64},
				FieldSpec{Name: "advertise", Doc: "IP address that others reach the hive at; empty: it is found out", Max: 64},
				FieldSpec{Name: "queen", Doc: "word to have it be a queen, too"},
			),
		},
		{
			Name: OpHiveUninstall, Number: 17, Title: "HiveUninstall", Summary: "Remove an installed hive: drain, leave the cluster, remove what was installed.",
			Runs: RunsOverSSH, Scope: ScopeAdmin, Result: UninstallResult{}, CLI: []string{"hive uninstall"}, Test: "TestHivesOverSSH",
			Fields: append(slices.Clone(overSSH),
				FieldSpec{Name: "keep_models", Doc: "word to leave the models and worker binaries there"},
				FieldSpec{Name: "grace", Doc: "time that running requests may go on; 0: 5 minutes"},
			),
		},
		{
			Name: OpHiveStart, Number: 18, Title: "HiveStart", Summary: "Start the service of an installed hive and wait until it is ready.",
			Runs: RunsOverSSH, Scope: ScopeAdmin, Result: InstallResult{}, CLI: []string{"hive start"}, Test: "TestHivesOverSSH", Fields: overSSH,
		},
		{
			Name: OpHiveStop, Number: 19, Title: "HiveStop", Summary: "Stop the service of an installed hive; its workers stay unless it is drained.",
			Runs: RunsOverSSH, Scope: ScopeAdmin, Result: InstallResult{}, CLI: []string{"hive stop"}, Test: "TestHivesOverSSH",
			Fields: append(slices.Clone(overSSH),
				FieldSpec{Name: "drain", Doc: "word to let running requests end, and then the workers"},
				FieldSpec{Name: "grace", Doc: "time that running requests may go on with drain; 0: 5 minutes"},
			),
		},
		{
			Name: OpHiveStatus, Number: 20, Title: "HiveStatus", Summary: "Say how each queen sees a hive, and whether it answers.",
			Runs: RunsOnQueen, Result: HiveHealth{}, Get: "/v1/hives/{hive}/status", CLI: []string{"hive status"}, Test: "TestOperations",
			Fields: []FieldSpec{hiveField},
		},
		{
			Name: OpHiveRefreshCapabilities, Number: 21, Title: "HiveRefreshCapabilities", Summary: "Look again at the devices and worker types of a hive.",
			Runs: RunsOnQueen, Result: RefreshResult{}, CLI: []string{"hive refresh"}, Test: "TestOperations",
			Fields: []FieldSpec{hiveField},
		},
		{
			Name: OpSSHTest, Number: 22, Title: "SshTest", Summary: "Try to reach a machine over SSH and say how far that gets, in 5 seconds.",
			Runs: RunsOverSSH, Scope: ScopeAdmin, Result: SSHTest{}, CLI: []string{"hive ssh-test"}, Test: "TestHivesOverSSH", Fields: overSSH,
		},
		{
			Name: OpHiveImportSSH, Number: 23, Title: "HiveImportSsh", Summary: "Add the hosts of an OpenSSH configuration to those that hives can be installed on.",
			Runs: RunsOverSSH, Scope: ScopeAdmin, Result: ImportResult{}, CLI: []string{"hive import-ssh"}, Test: "TestHivesOverSSH",
			Fields: []FieldSpec{{Name: "file", Doc: "path of the file on the queen's machine; empty: ~/.ssh/config there", Max: 4096}},
		},
		{
			Name: OpActiveWorkerList, Number: 24, Title: "ActiveWorkerList", Summary: "List the workers of the registry.",
			Runs: RunsOnQueen, Result: []Worker{}, Get: "/v1/workers", CLI: []string{"worker list", "ps"}, Test: "TestOperations",
		},
		{
			Name: OpActiveWorkerGet, Number: 25, Title: "ActiveWorkerGet", Summary: "Show a worker of the registry.",
			Runs: RunsOnQueen, Result: Worker{}, Get: "/v1/workers/{id}", CLI: []string{"worker get"}, Test: "TestOperations",
			Fields: []FieldSpec{{Name: "worker", Required: true, Doc: "id of a worker, or a unique prefix of it"}},
		},
		{
			Name: OpActiveWorkerRetire, Number: 26, Title: "ActiveWorkerRetire", Summary: "Give a worker no new request, let the running ones finish, then stop it.",
			Runs: RunsOnWorker, Result: ExitResult{}, CLI: []string{"worker retire", "stop"}, Test: "TestOperations",
			Fields: []FieldSpec{
				{Name: "worker", Required: true, Doc: "id of a worker, or a unique prefix of it"},
				{Name: "grace", Doc: "time that running requests may go on"},
			},
		},
		{
			Name: OpInfer, Number: 27, Title: "Infer", Summary: "Answer a prompt, starting what is missing. The answer is the result; POST /v1/chat/completions streams it.",
			Runs: RunsOnQueen, Result: InferResult{}, Private: true, CLI: []string{"infer", "run", "chat"}, Test: "TestInferAsJob",
			Fields: []FieldSpec{
				{Name: "model", Required: true, Doc: "id, alias or catalog reference of a model"},
				{Name: "prompt", Required: true, Max: MaxPromptBytes, Lines: true, Doc: "text to answer"},
				{Name: "system_prompt", Max: MaxPromptBytes, Lines: true, Doc: "text that says how to answer"},
				{Name: "max_tokens", Max: MaxContextTokens, Doc: "number of tokens to answer with at most; 0: what fits"},
			},
		},
		{
			Name: OpStatus, Number: 28, Title: "Status", Summary: "Show queens, hives, workers, models, jobs and problems.",
			Runs: RunsOnQueen, Result: Status{}, Get: "/v1/status", CLI: []string{"status"}, Test: "TestOperations",
		},
		{
			Name: OpStoreVerify, Title: "StoreVerify", Summary: "Read all models and worker binaries of a hive's store and name those that are damaged.",
			Runs: RunsOnHive, Result: StoreVerifyResult{}, CLI: []string{"store verify"}, Test: "TestOperations",
		},
		{
			Name: OpStoreGC, Title: "StoreGC", Summary: "Remove from a hive's store what nobody needs.",
			Runs: RunsOnHive, Result: StoreGCResult{}, CLI: []string{"store gc"}, Test: "TestOperations",
			Fields: []FieldSpec{{Name: "dry_run", Doc: "word to only say what would be removed"}},
		},
	}
}
