bind {
  address     = "0.0.0.0"
  rpc_port    = 9834
  gossip_port = 9835
  advertise   = "10.0.0.3"
}
queen {
  enabled          = true
  bootstrap_expect = 3
  election_timeout = "1s"
  certificate_ttl  = "24h"
}
gossip {
  retry_join = ["10.0.0.1", "queens.example.org:7000"]
  key_file   = "gossip.key"
}
tls {
  ca_file   = "ca.pem"
  cert_file = "node.pem"
  key_file  = "node.key"
}
