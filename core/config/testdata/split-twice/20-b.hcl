log_level = "info"
worker "cpu" {}
hive { slots = 2 }
