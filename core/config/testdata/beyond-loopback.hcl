bind {
  address = "0.0.0.0"
}
queen { enabled = true }
hive { enabled = true }
