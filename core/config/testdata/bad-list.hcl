queen { enabled = true }
gossip {
  retry_join = "10.0.0.1"
}
