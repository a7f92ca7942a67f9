data_dir = "state"
queen { enabled = true }
hive {
  enabled    = true
  stop_grace = "1m30s"
}
name = upper(env.NAME)
