queen {
  enabled = true
}
hive {
  enabled = true
  build {
    enabled  = true
    timeout  = "0s"
    max_disk = "1KiB"
  }
}
