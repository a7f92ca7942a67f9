package config

// Load reads the files, and the *.hcl and *.json files of the folders, that paths name, merges them, and adds environment and flags.
// No path at all gives the defaults. The Config is nil when the diagnostics have errors.
func Load(paths []string, env Env, flags ...Flag) (*Config, *Diagnostics) {
	return nil, &Diagnostics{}
}

// Dev is the configuration of an agent that keeps nothing: queen and hive on loopback, every folder but the store's below dataDir.
func Dev(dataDir string, env Env, flags ...Flag) (*Config, *Diagnostics) {
	return nil, &Diagnostics{}
}

// Settings lists every value with its origin, in the order of the documentation.
func (c *Config) Settings() []Setting { return nil }
