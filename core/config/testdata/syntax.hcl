queen {
  enabled = true
hive { enabled = true }
