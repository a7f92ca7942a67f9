queen { enabled = true }
hive { enabled = true }
gossip {
  retry_join = ["10.0.0.1"]
}
