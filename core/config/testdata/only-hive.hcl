hive {
  enabled = true
}
