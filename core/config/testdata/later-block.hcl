queen { enabled = true }
hive { enabled = true }
console {
  enabled = true
}
