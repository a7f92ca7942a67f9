log_level = "debug"
queen { enabled = true }
hive { enabled = true }
worker "cpu" {}
