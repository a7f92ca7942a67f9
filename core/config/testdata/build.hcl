queen {
  enabled = true
}
hive {
  enabled = true
  build {
    enabled = true
    tiemout = "5m"
  }
  build {
    enabled = false
  }
}
