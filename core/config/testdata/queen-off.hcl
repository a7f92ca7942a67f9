queen {
  enabled = false
}
hive {
}
