insecure = true
bind {
  address = "192.0.2.7"
}
queen { enabled = true }
hive { enabled = true }
