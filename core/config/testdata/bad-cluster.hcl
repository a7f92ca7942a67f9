bind {
  advertise = "::"
  rpc_port  = -1
}
queen {
  enabled          = true
  bootstrap_expect = 2
  election_timeout = "1m"
}
hive {
  name = "desk"
}
gossip {
  retry_join = ["10.0.0.1", 7, "a,b"]
}
tls {
  cert_file = "node.pem"
}
